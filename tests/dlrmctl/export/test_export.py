"""`dlrmctl export`: a file that torch alone serves, with the scores of its checkpoint."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrmctl.data.reader import Reader
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.writer import write_store
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.export import command
from dlrmctl.export.agreement import ROUNDING, inputs_of
from dlrmctl.export.program import METADATA
from dlrmctl.rundir.calibration import Calibration, identity_of
from dlrmctl.rundir.directory import RunDirectory
from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import SMALL, in_process, start

MODEL = [*SMALL[2:], "--batch-size", "64", "--evaluations", "1"]
SERVE = """
import json, sys, torch
model = torch.export.load(sys.argv[1]).module()
rows = torch.load(sys.argv[2], weights_only=True)
scores = model(rows["dense"], rows["ids"])
assert not {"torchrec", "fbgemm_gpu", "dlrmctl"} & set(sys.modules)
print(json.dumps([scores.tolist(), [float(model(rows["dense"][i:i + 1], rows["ids"][i:i + 1])) for i in range(3)]]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of sampled negatives, and a run on it."""
    directory = tmp_path_factory.mktemp("export")
    (directory / "train.txt").write_text(criteo_lines(1400))
    prepare = ["prepare", "criteo", directory / "train.txt", "-o", directory / "store", "--sample-negatives", "0.5"]
    assert in_process(*prepare).status == 0
    done = in_process(
        *("train", *MODEL, "--data", directory / "store", "--run-dir", directory / "run"),
        *("--embedding", "qr", "--qr-threshold", "20"),
    )
    assert done.status == 0, done.err
    return directory


@pytest.fixture(scope="module")
def exported(place: Path) -> tuple[Path, dict]:
    """The run as a file, calibrated, and what the command said."""
    best = (place / "run" / "checkpoints" / "best").resolve()
    Calibration("platt", 0.8, 0.1, best.name, identity_of(best)).save(RunDirectory(place / "run", writes=True))
    more = ("--calibrated", "--check-rows", "50", "--json")
    done = in_process("export", place / "run", "-o", place / "served.pt2", *more)
    assert done.status == 0, done.err
    return place / "served.pt2", done.json()


@pytest.fixture(scope="module")
def with_lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on lists of ids."""
    directory = tmp_path_factory.mktemp("lists")
    source = Synthetic(0, 3000, 400, 400, cardinalities=(3, 400, 50), max_ids=(1, 3, 4))
    write_store(source, directory / "store")
    train = ["train", *MODEL, "--data", directory / "store", "--run-dir", directory / "run", "--embedding", "qr"]
    done = in_process(*train, "--qr-threshold", "20")
    assert done.status == 0, done.err
    return directory


def test_a_process_with_torch_alone_gives_raw_rows_the_probabilities_of_predict(
    place: Path, exported: tuple[Path, dict], tmp_path: Path
):
    store = Store(place / "store")
    test = store.num_examples("test")
    lines = (place / "train.txt").read_text().splitlines(keepends=True)[-test:]
    (tmp_path / "new.tsv").write_text("".join(lines))
    predict = ("predict", place / "run", tmp_path / "new.tsv", "--labelled", "-o", tmp_path / "p.csv")
    done = in_process(*predict, "--calibrated")
    assert done.status == 0, done.err
    predicted = [float(line.split(",")[2]) for line in (tmp_path / "p.csv").read_text().splitlines()[1:]]
    (batch,) = Reader(store, "test", batch_size=test, seed=0, shuffle=False, drop_last=False).batches(epoch=0)
    inputs = inputs_of(batch, store.schema)
    torch.save({"dense": inputs.dense, "ids": inputs.ids}, tmp_path / "rows.pt")
    served = subprocess.run(
        [sys.executable, "-c", SERVE, exported[0], tmp_path / "rows.pt"], capture_output=True, text=True, cwd=tmp_path
    )
    assert served.returncode == 0, served.stderr
    together, alone = json.loads(served.stdout)
    assert together == pytest.approx(predicted, abs=ROUNDING)
    assert alone == pytest.approx(predicted[:3], abs=ROUNDING)


def test_the_file_says_what_its_server_has_to_know(place: Path, exported: tuple[Path, dict]):
    file, result = exported
    inside = {METADATA: ""}
    torch.export.load(file, extra_files=inside)
    metadata, store = json.loads(inside[METADATA]), Store(place / "store")
    assert metadata["ids"]["vocabulary"] == store.vocabulary_fingerprint()
    made = store.manifest.preparation
    assert made is not None
    assert made.sampling is not None
    assert metadata["dense_transform"] == made.dense_transform.to_dict()
    assert metadata["ids"]["columns"] == [column.to_dict() for column in made.columns]
    assert [column["name"] for column in metadata["inputs"]["ids"]["columns"]] == list(store.schema.keys)
    assert metadata["logit_offset"] == made.sampling.logit_offset != 0
    assert metadata["calibration"] == {"method": "platt", "slope": 0.8, "bias": 0.1}
    assert metadata["checks"]["rows"] == result["checks"]["rows"] == 50
    assert result["checks"]["largest_difference"] <= ROUNDING
    assert sum(table["bytes"] for table in metadata["tables"].values()) == result["table_bytes"]
    assert str(place).encode() not in file.read_bytes()
    assert __file__.split("/tests/")[0].encode() not in file.read_bytes()


def test_int8_tables_of_8_columns_take_12_bytes_a_row(with_lists: Path, tmp_path: Path):
    done = in_process(
        *("export", with_lists / "run", "-o", tmp_path / "m.pt2", "--precision", "int8", "--max-ne-increase", "50%")
    )
    assert done.status == 0, done.err
    assert "tables, int8" in done.out
    assert "rise of NE" in done.out
    assert "ids: int64 [batch, 1]" in done.out
    assert "int64 [batch, longest]} and 1 more; pad shorter lists with -1" in done.out
    inside = {METADATA: ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=inside)
    for table in json.loads(inside[METADATA])["tables"].values():
        assert table["bytes"] == 12 * table["rows"]
        assert table["stored"] == "int8"


def test_compressed_tables_stay_as_they_are(with_lists: Path, tmp_path: Path):
    small = tmp_path / "small"
    compress = in_process("compress-embeddings", with_lists / "run", "-o", small, "--method", "head5%+rq2x16")
    assert compress.status == 0, compress.err
    done = in_process("export", small, "-o", tmp_path / "m.pt2", "--json")
    assert done.status == 0, done.err
    result = done.json()
    assert result["precision"] == "as compressed"
    assert result["checks"]["largest_difference"] <= ROUNDING
    assert result["table_bytes"] < result["table_bytes_before"]
    assert [lists["shape"] for lists in result["inputs"]["lists"].values()] == [
        ["batch", "1 to 3"],
        ["batch", "1 to 4"],
    ]
    refused = in_process("export", small, "-o", tmp_path / "x.pt2", "--precision", "int8")
    assert refused.status == 2
    assert "are compressed, and are exported as they are" in refused.err
    refused = in_process("export", small, "-o", tmp_path / "x.pt2", "--checkpoint", "step-50")
    assert refused.status == 2
    assert f"--checkpoint step-50: {small} is a compressed model" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-o", "there.pt2"], "there.pt2 already exists"),
        (["run", "-o", "m.onnx"], "m.onnx: the name of an exported model must end in .dlrm or .pt2"),
        (["run", "-o", "no/m.pt2"], "no: no such directory"),
        (["absent", "-o", "m.pt2"], "absent: no such run directory"),
        (["store", "-o", "m.pt2"], "store is not a run directory"),
        (["run", "-o", "m.pt2", "--precision", "int4"], "--precision = 'int4' must be one of fp32, int8"),
        (["run", "-o", "m.pt2", "--checkpoint", "step-7"], "has no checkpoint 'step-7'"),
        (["run", "-o", "m.pt2", "--check-rows", "0"], "--check-rows = 0 must be at least 1"),
        (["run", "-o", "m.pt2", "--max-ne-increase", "x"], "--max-ne-increase"),
        (["run", "-o", "m.pt2", "--max-ne-increase", "1%"], "--max-ne-increase 1% needs --precision int8"),
        (["run", "-o", "m.pt2", "--max-ne-increase", "1%", "--precision", "fp32"], "needs --precision int8"),
        (["run", "-o", "m.pt2", "--precision", "int8", "--check-rows", "1"], "NE needs both labels among the checked"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    monkeypatch.chdir(place)
    (place / "there.pt2").touch()
    before = sorted(place.iterdir())
    done = in_process("export", *arguments)
    assert done.status == 2
    assert message in done.err
    assert done.err.count("error: ") == 1
    assert sorted(place.iterdir()) == before


def test_a_file_whose_scores_are_not_those_of_the_checkpoint_is_not_left(
    with_lists: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # What a file that was damaged on its way gives.
    monkeypatch.setattr(command, "score_file", lambda path, inputs: np.full(len(inputs.dense), 0.5, np.float32))
    for precision, message in (
        ("fp32", "the exported model differs from step-"),
        ("int8", "int8 raises the NE of step-"),
    ):
        done = in_process("export", with_lists / "run", "-o", tmp_path / "m.pt2", "--precision", precision)
        assert done.status == 2
        assert message in done.err
        assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(with_lists: Path, tmp_path: Path):
    limited = [
        *("import resource", "from dlrmctl.cli.main import run_command"),
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))",
        f"raise SystemExit(run_command(['export', {str(with_lists / 'run')!r}, '-o', 'm.pt2']))",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(limited)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "error: m.pt2: cannot write: file too large" in done.stderr
    assert "raise the limit" in done.stderr
    assert "terminate" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_takes_no_files_is_said_before_anything_is_scored(place: Path):
    done = in_process("export", place / "run", "-o", "/proc/m.pt2")
    assert done.status == 2
    error, hint = done.err.strip().splitlines()  # no line about scoring
    assert error.startswith("error: /proc/m.pt2: cannot write: ")
    assert hint == "hint: choose a directory that files can be written to"


def test_what_others_left_beside_the_file_stays(place: Path, tmp_path: Path):
    (tmp_path / "m.pt2.partial").mkdir()
    (tmp_path / "m.pt2.partial" / "mine").touch()
    done = in_process("export", place / "run", "-o", tmp_path / "m.pt2", "--check-rows", "20")
    assert done.status == 0, done.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["m.pt2", "m.pt2.partial", "mine"]


def test_an_export_that_is_told_to_stop_leaves_nothing(place: Path, tmp_path: Path):
    process = start("export", place / "run", "-o", tmp_path / "m.pt2", cwd=tmp_path)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("*.partial")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.terminate()
    process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
