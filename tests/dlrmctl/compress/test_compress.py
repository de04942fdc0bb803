"""`dlrmctl compress-embeddings` on trained models and on files of tensors."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlrmctl.compress import compression as compression
from tests.dlrmctl.commands import SMALL, Done, in_process, run_as_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("compress")
    for embedding in ("full", "qr"):
        done = in_process(
            *("train", *SMALL, "--synthetic-rows", 24_000, "--embedding", embedding, "--evaluations", 1),
            *("--dense-optimizer", "adagrad", "--run-dir", directory / embedding),
        )
        assert done.status == 0, done.err
    return directory


def compress(source: Path, out: Path, *arguments: object) -> Done:
    done = in_process("compress-embeddings", source, "-o", out, *map(str, arguments))
    assert done.status == 0, done.err
    return done


def test_the_bytes_of_the_report_are_those_of_the_files(runs: Path, tmp_path: Path):
    out = tmp_path / "small"
    report = compress(runs / "full", out, "--method", "rq2x16", "--min-rows", 3000, "--json").json()
    assert report == json.loads((out / "report.json").read_text())
    files = report["files"]
    on_disk = {path.name: path.stat().st_size for path in out.iterdir() if path.is_file()}  # features/ is the data's
    tensors = sum(size for name, size in on_disk.items() if name.endswith(".safetensors"))
    assert sum(files.values()) == sum(on_disk.values())
    assert files["tensors"] + files["headers"] == tensors
    assert files["manifest"] == on_disk["manifest.json"]
    stored = {
        name: tensor.nbytes for path in out.glob("tables-*.safetensors") for name, tensor in load_file(path).items()
    }
    assert sum(stored.values()) == report["bytes_after"]
    for table in report["tables"]:
        mine = sum(size for name, size in stored.items() if name.startswith(table["name"] + "/"))
        assert mine == table["bytes_after"]


@pytest.mark.parametrize("embedding", ["full", "qr"])
def test_a_compressed_model_scores_in_evaluate_and_compare_what_its_report_says(
    runs: Path, tmp_path: Path, embedding: str
):
    out = tmp_path / "small"
    report = compress(runs / embedding, out, "--method", "int4", "--json").json()
    evaluated = in_process("evaluate", out, "--json").json()["test"]
    compared = in_process("compare", runs / embedding, out, "--json").json()
    # Both sum the same float32 logits; the trained model's own lookup may round its pooled sums otherwise.
    assert report["test"]["ne"]["b"] == pytest.approx(evaluated["ne"], rel=1e-9)
    assert compared["ne"]["difference"] == pytest.approx(report["test"]["ne"]["difference"], rel=1e-3)
    assert report["ratio"] > 3


def test_a_budget_is_kept_with_two_standard_errors_and_makes_smaller_tables_than_int8(runs: Path, tmp_path: Path):
    picture = tmp_path / "frontier.svg"
    budget = compress(
        runs / "full", tmp_path / "a", "--max-ne-increase", "1%", "--min-rows", 3000, "--json", "--plot", picture
    ).json()
    int8 = compress(runs / "full", tmp_path / "b", "--method", "int8", "--min-rows", 3000, "--json").json()
    assert budget["ratio"] > 1.2 * int8["ratio"]
    chosen = [tried for tried in budget["evaluated"] if tried["bytes"] == budget["bytes_after"]]
    assert chosen
    predicted = chosen[0]["predicted_ne_increase"]  # None for one method for all tables
    upper = max(chosen[0]["ne_increase"], predicted or 0) + 2 * chosen[0]["se"]
    assert upper <= 0.01
    assert budget["validation"]["ne_increase"] == pytest.approx(chosen[0]["ne_increase"], rel=1e-9)
    assert picture.read_text().startswith("<?xml")


def test_a_budget_that_only_float32_keeps_is_kept_and_the_sum_that_failed_is_shown(runs: Path, tmp_path: Path):
    arguments = ("--max-ne-increase", "0.000000001%", "--tables", "cat_22", "--min-rows", 3000, "--dry-run", "--json")
    done = compress(runs / "full", tmp_path / "x", *arguments)
    report = done.json()
    assert report["ratio"] == 1
    assert report["validation"]["ne_increase"] == 0
    assert "cannot be reached" not in done.err
    failed = re.search(
        r"only float32 tables keep this budget; .* increases NE by (\S+) \+ 2 x (\S+) = (\S+) > 1e-09 %", done.err
    )
    assert failed
    rise, se, upper = map(float, failed.groups())
    assert upper == pytest.approx(rise + 2 * se, rel=2e-3, abs=2e-4)  # each is rounded to four digits


def test_what_is_not_reached_hints_at_tables_only_where_they_were_narrowed(runs: Path, tmp_path: Path):
    arguments = ("compress-embeddings", runs / "full", "-o", tmp_path / "x", "--target-ratio", "5000x")
    small = in_process(*arguments, "--min-rows", "3000")
    assert "a lower --min-rows to compress the" in small.err
    narrowed = in_process(*arguments, "--min-rows", "1", "--tables", "cat_20")
    assert "; more --tables to compress the" in narrowed.err or "hint: more --tables" in narrowed.err


def test_a_failure_after_the_tables_leaves_no_directory(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compression, "write_settings", fail)
    done = in_process("compress-embeddings", runs / "full", "-o", tmp_path / "x", "--method", "int8")
    assert done.status == 2
    assert "cannot write: no space left on device" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def wet(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of tables that were made 2.5 times smaller."""
    out = tmp_path_factory.mktemp("wet") / "small"
    return compress(runs / "full", out, "--target-ratio", "2.5x", "--min-rows", 5000, "--json").json()


def test_a_ratio_is_reached_and_not_overshot_by_a_coarser_choice_than_needed(
    runs: Path, tmp_path: Path, wet: dict[str, Any]
):
    small = compress(
        runs / "full", tmp_path / "small", "--target-ratio", "4x", "--min-rows", 5000, "--json", "--dry-run"
    ).json()
    errors = []
    for ratio, report in ((2.5, wet), (4, small)):
        assert ratio <= report["ratio"] < 1.25 * ratio
        errors.append(sum(table.get("weighted_error", 0) for table in report["tables"]))
    assert errors[0] < errors[1]


def test_a_ratio_that_no_method_reaches_is_said_before_anything_is_fitted_with_one_that_is(runs: Path, tmp_path: Path):
    arguments = ("compress-embeddings", runs / "full", "-o", tmp_path / "x", "--dry-run", "--tables", "cat_2[34]")
    arguments += ("--target-ratio",)
    done = in_process(*arguments, "5000x")
    assert done.status == 2
    found = re.search(r"5000x cannot be reached: the smallest tables give ([\d.]+x)", done.err)
    assert found
    assert "fitted" not in done.err
    assert in_process(*arguments, found[1]).status == 0


def test_a_dry_run_says_the_same_and_writes_nothing(runs: Path, tmp_path: Path, wet: dict[str, Any]):
    dry = compress(
        runs / "full", tmp_path / "dry", "--target-ratio", "2.5x", "--min-rows", 5000, "--json", "--dry-run"
    ).json()
    assert dry == {name: value for name, value in wet.items() if name != "files"}
    assert list(tmp_path.iterdir()) == []


def test_expanded_tables_are_plain_and_near_the_trained_ones(runs: Path, tmp_path: Path):
    compress(runs / "full", tmp_path / "small", "--method", "int8")
    compress(tmp_path / "small", tmp_path / "plain", "--expand")
    exact = compress(runs / "full", tmp_path / "exact", "--method", "fp16")
    assert exact.status == 0
    compress(tmp_path / "exact", tmp_path / "half", "--expand")
    for path in (tmp_path / "plain").iterdir():
        found, half = load_file(path), load_file(tmp_path / "half" / path.name)
        for name, table in found.items():
            assert table.dtype == torch.float32
            step = (half[name].amax(1) - half[name].amin(1)) / 255
            # Half a step of the range of its row, and as much again for the half precision of the step itself.
            assert ((table - half[name]).abs().amax(1) <= step + 1e-6).all()


def test_tables_of_other_programs_are_compressed_by_name_with_a_warning_about_weights(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "emb.0.weight": torch.randn(300, 6, generator=generator),
        "emb.1.weight": torch.randn(1, 16, generator=generator),
        "mlp.weight": torch.randn(4, 4, generator=generator),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "model.pt")
    for file in ("model.safetensors", "model.pt"):
        out = tmp_path / f"out-{file}"
        done = in_process(
            *(
                "compress-embeddings",
                tmp_path / file,
                "-o",
                out,
                "--tables",
                "emb.*",
                "--method",
                "int8",
                "--min-rows",
                1,
            )
        )
        assert done.status == 0, done.err
        assert "all rows have the same weight" in done.err
        compress(out, tmp_path / f"plain-{file}", "--expand")
        table = load_file(tmp_path / f"plain-{file}" / "emb.0.weight.safetensors")["emb.0.weight.weight"]
        assert (table - tensors["emb.0.weight"]).abs().max() < 0.02  # a step of 255 over at most six deviations


def test_a_missing_part_of_a_sharded_checkpoint_is_said(runs: Path, tmp_path: Path):
    run = tmp_path / "run"
    arguments = ["train", *SMALL, "--synthetic-rows", "2000", "--run-dir", run, "--evaluations", "1"]
    done = run_as_ranks(2, *arguments, cwd=tmp_path)
    assert done.status == 0, done.err
    compress(run, tmp_path / "whole", "--method", "int8")
    part = next((run / "checkpoints").glob("step-*/__1_*.distcp"))
    part.unlink()
    done = in_process("compress-embeddings", run, "-o", tmp_path / "out", "--method", "int8")
    assert done.status == 2
    assert f"damaged: {part.name} is missing" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["full", "-o", "x"], "is needed, found none"),
        (["full", "-o", "x", "--method", "int8", "--target-ratio", "4x"], "found --target-ratio and --method"),
        (["full", "-o", "qr", "--method", "int8"], "qr already exists"),
        (["full", "-o", "x", "--method", "int3"], "method 'int3' is unknown"),
        (["full", "-o", "x", "--method", "intt8"], "did you mean 'int8'?"),
        (["full", "-o", "x", "--method", "zzz"], "hint: examples: fp16"),
        (["full", "-o", "nodir/x", "--method", "int8"], "nodir: no such directory"),
        (["full", "-o", "x", "--method", "head2%+int4", "--keep-head", "5%"], "--keep-head 5% cannot be used with"),
        (["full", "-o", "x", "--method", "int8", "--tables", "cat26"], "did you mean 'cat_26'?"),
        (
            ["full", "-o", "x", "--target-ratio", "500x", "--min-rows", "9000"],
            "500x cannot be reached: the smallest tables give",
        ),
        (["full", "-o", "x", "--target-ratio", "1"], "--target-ratio = 1 must be above 1"),
        (["full", "-o", "x", "--max-ne-increase", "0%"], "--max-ne-increase = 0% must be above 0"),
        (["full", "-o", "x", "--method", "int8", "--min-rows", "99999"], "no table has this many rows"),
        (["full", "-o", "x", "--method", "int8", "--weights", "counts"], "--weights counts: table"),
        (["full", "-o", "x", "--method", "nile-pro9"], "--method nile-pro9: 9 coordinates are more than the 8 columns"),
        (["full", "-o", "x", "--vectors"], "full contains no compressed tables"),
        (["full", "-o", "x", "--expand", "--finetune-data", "y"], "--finetune-data cannot be used with --expand"),
        (["full", "-o", "x", "--expand", "--plot", "y.png"], "--plot cannot be used with --expand"),
        (["full", "-o", "x", "--vectors", "--tables", "y"], "--tables cannot be used with --vectors"),
        (["full", "-o", "x", "--expand", "--data", "y"], "--data cannot be used with --expand"),
        (["full", "-o", "x", "--expand", "--weights", "auto"], "--weights cannot be used with --expand"),
        (["nowhere", "-o", "x", "--method", "int8"], "nowhere: no such run, checkpoint or file of tensors"),
        (["nan.safetensors", "-o", "x", "--method", "int8"], "table t: row 7 holds a value that is not finite"),
        (["nan.safetensors", "-o", "x", "--max-ne-increase", "1%"], "--max-ne-increase needs a run"),
        (
            ["full", "-o", "x", "--method", "int8", "--plot", "a.bmp"],
            "--plot a.bmp: a picture must end in",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    runs: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    table = torch.ones(40, 8)
    table[7, 3] = float("nan")
    save_file({"t": table}, runs / "nan.safetensors")
    monkeypatch.chdir(runs)
    done = in_process("compress-embeddings", *arguments)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("error: ") == 1
    assert not (runs / "x").exists()
