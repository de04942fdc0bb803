"""`dlrmctl compress-embeddings` on a model trained on a prepared store: counts, fine-tuning and maps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import write_store
from tests.dlrmctl.commands import SMALL, Done, in_process

ROWS = 30_000


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, the store it was trained on, and stores of fresh data with its vocabulary and with one of their own."""
    path = tmp_path_factory.mktemp("compress-store")
    files = ("data", "synthesize", "-o", path / "{n}.tsv", "--rows", 2 * ROWS, "--files", 2)
    commands = [
        files,
        ("prepare", "criteo", path / "0.tsv", "-o", path / "base"),
        ("prepare", "criteo", path / "1.tsv", "-o", path / "fresh", "--vocabulary-from", path / "base"),
        ("prepare", "criteo", path / "1.tsv", "-o", path / "other", "--limit", 5000),
        (
            *("train", *SMALL, "--dataset", "criteo", "--data", path / "base", "--run-dir", path / "run"),
            *("--embedding", "full", "--evaluations", 1, "--dense-optimizer", "adagrad", "--no-wide"),
        ),
    ]
    for command in commands:
        done = in_process(*map(str, command))
        assert done.status == 0, done.err
    return path


def compress(work: Path, out: Path, *arguments: object) -> Done:
    return in_process("compress-embeddings", work / "run", "-o", out, *map(str, arguments))


def report_of(done: Done) -> dict[str, Any]:
    assert done.status == 0, done.err
    return done.json()


def test_counts_weigh_rows_as_well_as_the_state_of_adagrad_does(work: Path, tmp_path: Path):
    method = ("--method", "rq1x32", "--dry-run", "--json", "--min-rows", 400, "--weights")
    reports = {
        kind: report_of(compress(work, tmp_path / "x", *method, kind)) for kind in ("counts", "uniform", "adagrad")
    }
    for kind, report in reports.items():
        assert {table["weights"] for table in report["tables"] if "weights" in table} == {kind}
    # So small a change of NE is chance. Its standard error is how far the losses of examples move.
    moved = {kind: report["validation"]["ne_increase_se"] for kind, report in reports.items()}
    assert max(moved["counts"], moved["adagrad"]) < moved["uniform"]


@pytest.fixture(scope="module")
def tuned(work: Path) -> dict[str, Any]:
    arguments = ("--method", "qr-mult8-int8", "--min-rows", 400, "--finetune-data", work / "fresh", "--json")
    return report_of(compress(work, work / "tuned", *arguments))


def test_fine_tuning_lowers_ne_and_the_control_beside_it_is_told(work: Path, tuned: dict[str, Any]):
    found = tuned["finetune"]
    assert found["steps"] == Store(work / "fresh").num_examples("train") // 256
    assert found["fixed"] == []
    assert found["fresh"] is True
    for split in ("validation", "test"):
        part = found[split]
        assert tuned[split]["ne_increase"] < part["before"]["ne_increase"]
        # One paired difference is the other two's: all are on the same examples.
        against = tuned[split]["ne"]["b"] - part["control"]["ne"]["b"]
        assert part["against_control"]["ne"]["difference"] == pytest.approx(against, rel=1e-9)


def test_what_is_written_is_the_fine_tuned_model_in_the_bytes_of_the_compressed_one(
    work: Path, tuned: dict[str, Any], tmp_path: Path
):
    plain = report_of(compress(work, tmp_path / "plain", "--method", "qr-mult8-int8", "--min-rows", 400, "--json"))
    assert tuned["bytes_after"] == plain["bytes_after"]
    assert tuned["files"]["tensors"] == plain["files"]["tensors"]
    stored = [load_file(file) for file in (work / "tuned").glob("tables-*.safetensors")]
    assert sum(tensor.nbytes for part in stored for tensor in part.values()) == tuned["bytes_after"]
    evaluated = in_process("evaluate", work / "tuned", "--json").json()["test"]
    # The same float32 logits, summed in another order.
    assert evaluated["ne"] == pytest.approx(tuned["test"]["ne"]["b"], rel=1e-9)


def test_mlps_can_stay_what_they_were(work: Path, tmp_path: Path):
    arguments = (
        "--method",
        "int8",
        "--finetune-data",
        work / "fresh",
        "--finetune-steps",
        5,
        "--freeze-mlps",
        "--json",
    )
    report = report_of(compress(work, tmp_path / "frozen", *arguments))
    assert report["finetune"]["mlps"] is False
    assert report["finetune"]["steps"] == 5
    report_of(compress(work, tmp_path / "plain", "--method", "int8", "--json"))
    dense = [load_file(tmp_path / name / "dense.safetensors") for name in ("frozen", "plain")]
    assert all(torch.equal(value, dense[1][name]) for name, value in dense[0].items())


def test_codes_can_be_trained_and_the_size_stays(work: Path, tmp_path: Path):
    arguments = ("--method", "rq1x16", "--finetune-data", work / "fresh", "--finetune-steps", 20, "--json")
    found = [
        report_of(compress(work, tmp_path / str(n), *arguments, *more))
        for n, more in enumerate([(), ("--train-codes",)])
    ]
    assert [report["finetune"]["codes"] for report in found] == [False, True]
    assert found[0]["bytes_after"] == found[1]["bytes_after"]
    fixed, trained = (in_process("evaluate", tmp_path / name, "--json").json()["test"]["ne"] for name in "01")
    assert trained != fixed
    assert trained == pytest.approx(found[1]["test"]["ne"]["b"], rel=1e-9)
    assert trained == pytest.approx(fixed, rel=0.01)


def test_the_training_data_of_the_run_is_warned_of(work: Path, tmp_path: Path):
    arguments = ("--method", "int8", "--finetune-data", work / "base", "--finetune-steps", 2, "--dry-run")
    done = compress(work, tmp_path / "x", *arguments)
    assert done.status == 0
    assert "is the training data of the model" in done.err
    assert "control" in done.out
    assert "2 steps of 256 examples of the training data" in done.out


def test_near_isometric_tables_come_with_certificates_and_vectors_to_search(work: Path, tmp_path: Path):
    arguments = ("--method", "near-isometric4", "--tables", "cat_20", "--finetune-data", work / "fresh")
    report = report_of(compress(work, tmp_path / "maps", *arguments, "--finetune-steps", 2, "--json"))
    (table,) = [table for table in report["tables"] if table["name"] == "cat_20"]
    assert table["method"] == "nile-pro4-int8"
    assert report["finetune"]["fixed"] == ["cat_20"]
    own, pca = table["isometry"]["maps"][:2]
    assert (own["name"], pca["name"]) == ("nile-pro", "pca")
    assert own["delta"] <= pca["delta"]
    done = in_process("compress-embeddings", tmp_path / "maps", "-o", tmp_path / "vectors", "--vectors")
    assert done.status == 0, done.err
    found = load_file(tmp_path / "vectors" / "cat_20.safetensors")
    assert found["vectors"].shape == (table["rows"], 4)
    certificate = json.loads((tmp_path / "vectors" / "report.json").read_text())["tables"]["cat_20"]
    assert certificate["stored_delta"] == table["isometry"]["stored_delta"]
    # The exact rows, by way of a float32 copy of the trained table, become the vectors but for their rounding.
    report_of(compress(work, tmp_path / "exact", "--method", "fp32", "--json"))
    in_process("compress-embeddings", tmp_path / "exact", "-o", tmp_path / "plain", "--expand")
    rows = load_file(tmp_path / "plain" / "cat_20.safetensors")["cat_20.weight"]
    exact = (rows - found["mean"]) @ found["projection"].T
    assert float((exact - found["vectors"]).abs().max()) < 0.02 * float(exact.abs().max())


class WithoutValidation:
    """A store's examples without those for validation."""

    def __init__(self, store: Store) -> None:
        self._store, self.schema, self.block_rows = store, store.schema, store.block_rows

    def num_examples(self, split: str) -> int:
        return 0 if split == "validation" else self._store.num_examples(split)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_budget_needs_a_validation_split_and_a_method_does_not(work: Path, tmp_path: Path):
    write_store(WithoutValidation(Store(work / "base")), tmp_path / "cut")  # type: ignore[arg-type]
    done = compress(work, tmp_path / "x", "--max-ne-increase", "1%", "--data", tmp_path / "cut")
    assert done.status == 2
    assert "--max-ne-increase needs a validation split, which this data does not have" in done.err
    report = report_of(compress(work, tmp_path / "x", "--method", "int8", "--data", tmp_path / "cut", "--json"))
    assert "validation" not in report
    assert np.isfinite(report["test"]["ne_increase"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--finetune-steps", "3"], "--finetune-steps needs --finetune-data"),
        (["--finetune-lr", "0.1"], "--finetune-lr needs --finetune-data"),
        (["--finetune-data", "fresh", "--finetune-lr", "1e9"], "--finetune-lr 1e+09: training diverges"),
        (["--finetune-data", "fresh", "--batch-size", "90000"], "--finetune-data fresh has 25,"),
        (["--freeze-mlps"], "--freeze-mlps needs --finetune-data"),
        (["--train-codes"], "--train-codes needs --finetune-data"),
        (["--train-codes", "--finetune-data", "fresh"], "--train-codes: int8 has no codes"),
        (
            ["--finetune-data", "other"],
            "--finetune-data other has other ids than",
        ),
        (["--finetune-data", "nowhere"], "nowhere"),
        (["--finetune-data", "fresh", "--finetune-steps", "999"], "--finetune-steps 999: fresh has 100 batches of 256"),
        (["--finetune-data", "fresh", "--finetune-lr", "0"], "--finetune-lr = 0 must be above 0"),
    ],
)
def test_what_cannot_be_fine_tuned_is_one_line(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    monkeypatch.chdir(work)
    done = in_process("compress-embeddings", "run", "-o", tmp_path / "x", "--method", "int8", *arguments)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("error: ") == 1
    assert not (tmp_path / "x").exists()
