"""Damaged and hostile runs and compressed models: right numbers, or one line and status 2."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from dlrmctl.errors import UserError
from dlrmctl.rundir.tensor_files import stored_tensors
from tests.dlrmctl.commands import Done, in_process
from tests.dlrmctl.damages import Command, answers_to_damages
from tests.dlrmctl.small_tables import SCHEMA, TRAIN, rows_of_a_table

COMPRESS = ["--method", "int8", "--min-rows", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its compressed model, and rows to score."""
    place = tmp_path_factory.mktemp("damages")
    (place / "train.csv").write_text(rows_of_a_table(600))
    (place / "new.csv").write_text(rows_of_a_table(40, seed=1))
    (place / "schema.toml").write_text(SCHEMA)
    for arguments in (
        ["prepare", place / "train.csv", "--schema", place / "schema.toml", "-o", place / "store"],
        ["train", *TRAIN, "--data", place / "store", "--evaluations", "2", "--run-dir", place / "run"],
        ["compress-embeddings", place / "run", "-o", place / "small", *COMPRESS],
    ):
        done = in_process(*arguments)
        assert done.status == 0, done.err
    return place


def _numbers(done: Done) -> Any:
    return {key: value for key, value in done.json().items() if key not in ("run", "source", "out", "seconds", "files")}


def _commands(place: Path) -> dict[str, Command]:
    def predict(path: Path, out: Path) -> list[str | Path]:
        return ["predict", path, place / "new.csv", "--labelled", "-o", f"{out}.csv", "--json"]

    def export(path: Path, out: Path) -> list[str | Path]:
        return ["export", path, "-o", f"{out}.pt2", "--json"]

    return {
        "evaluate": Command(lambda path, out: ["evaluate", path, "--json"], _numbers, share=2),
        "predict": Command(predict, _numbers, share=2),
        "resume": Command(lambda path, out: ["train", "--resume", path, "--json"], _numbers, writes=True),
        "compress": Command(
            lambda path, out: ["compress-embeddings", path, "-o", out, *COMPRESS, "--json"],
            lambda done: done.json()["tables"],
            share=0.5,
        ),
        "expand": Command(
            lambda path, out: ["compress-embeddings", path, "-o", out, "--expand", "--json"],
            lambda done: done.json()["tables"],
            share=0.5,
        ),
        "runs": Command(lambda path, out: ["runs", path, "--json"], lambda done: None, share=0.5),
        "plot": Command(lambda path, out: ["plot", path, "-o", f"{out}.svg"], lambda done: None, share=0.3),
        "export": Command(export, lambda done: done.json()["checks"], share=0.05),  # takes seconds
    }


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_damaged_run_gives_right_numbers_or_one_line(place: Path, tmp_path: Path):
    commands = _commands(place)
    del commands["expand"]
    answers_to_damages(place / "run", tmp_path, commands, 700, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_damaged_compressed_model_gives_right_numbers_or_one_line(place: Path, tmp_path: Path):
    commands = _commands(place)
    del commands["runs"], commands["plot"]
    answers_to_damages(place / "small", tmp_path, commands, 500, seed=2)


def test_one_damaged_run_does_not_hide_the_others(place: Path, tmp_path: Path):
    for name in ("good", "bad", "worse", "worst"):
        shutil.copytree(place / "run", tmp_path / name, symlinks=True)
    (tmp_path / "bad" / "results.json").write_text("[]")
    (tmp_path / "worse" / "metrics.jsonl").write_text('{"step": "1"}\n')
    (tmp_path / "worst" / "run.toml").write_text("")
    done = in_process("runs", tmp_path, "--json")
    assert done.status == 0, done.err
    assert [Path(run["run"]).name for run in done.json()] == ["good"]
    assert done.err.count("warning: ") == 3
    for name, message in (("bad", "results.json: damaged: [] is not an object"), ("worse", "metrics.jsonl, line 1")):
        assert message in in_process("runs", tmp_path / name).err


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pathlib", "PosixPath"),
        ("collections", "OrderedDict"),
        ("torch", "Size"),
        ("torch", "float32"),
        ("torch.distributed.checkpoint.metadata", "Metadata"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ],
)
def test_metadata_cannot_change_what_it_names(tmp_path: Path, module: str, name: str):
    """BUILD sets attributes of any object on the stack, including classes."""
    import collections
    import pathlib

    import torch
    from torch.distributed.checkpoint import filesystem, metadata

    def text(value: str) -> bytes:
        return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value.encode()

    state = pickle.EMPTY_DICT + text("exists") + pickle.NEWTRUE + pickle.SETITEM
    for changes in (pickle.NONE + state + pickle.TUPLE2, state):  # of slots, and of the dictionary
        content = pickle.PROTO + b"\4" + text(module) + text(name) + pickle.STACK_GLOBAL + changes + pickle.BUILD
        (tmp_path / ".metadata").write_bytes(content + pickle.STOP)
        with pytest.raises(UserError):
            stored_tensors(tmp_path)
        for owner in (pathlib, collections, torch, metadata, filesystem):
            found = getattr(owner, name, None)
            assert getattr(found, "exists", None) is not True
    assert not Path("nowhere").exists()
