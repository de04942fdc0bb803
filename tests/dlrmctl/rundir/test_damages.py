"""Damaged and hostile files of runs and compressed models: right numbers, or one line and status 2.

Every file is cut short, changed in a byte, removed, emptied, replaced by other JSON, a link, a directory or a pipe; an
entry of its JSON becomes something else, with checksums made to fit or not.
"""

import json
import os
import pickle
import random
import shutil
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlrmctl.data.files import read_file
from dlrmctl.errors import UserError
from dlrmctl.rundir.tensor_files import stored_tensors
from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import SMALL, Done, in_process

COMPRESS = ["--method", "int8", "--min-rows", "2"]
DAMAGES = 120  # of a run, and as many of a compressed model
JUNK: list[Any] = [{}, [], None, True, -1, 0.5, 2**63, 10**4000, "x" * 3000, "../../elsewhere", {"a": {}}, [[1]], "nan"]
TEXTS = ["{}", "null", "[]", "[" * 100_000, "9" * 5000, '{"format": 1e999}', "\x00" * 50, "\x1b[31m{", '{"step": NaN}']


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its compressed model, and rows to score; with what each command says of them."""
    place = tmp_path_factory.mktemp("damages")
    lines = criteo_lines(1400)
    (place / "train.txt").write_text(lines)
    (place / "new.tsv").write_text("".join(lines.splitlines(keepends=True)[:64]))
    assert in_process("prepare", "criteo", place / "train.txt", "-o", place / "store").status == 0
    arguments = [*SMALL[2:], "--batch-size", "64", "--data", place / "store", "--evaluations", "2"]
    done = in_process("train", *arguments, "--run-dir", place / "run")
    assert done.status == 0, done.err
    done = in_process("compress-embeddings", place / "run", "-o", place / "small", *COMPRESS)
    assert done.status == 0, done.err
    return place


def _commands(path: Path, place: Path) -> dict[str, tuple[list[str | Path], Callable[[Done], Any]]]:
    """By name: the arguments, and what of the outcome must stay the same."""
    out = path.parent / "out"

    def numbers(done: Done) -> Any:
        found = done.json()
        return {key: value for key, value in found.items() if key not in ("run", "source", "out", "seconds", "files")}

    return {
        "evaluate": (["evaluate", path, "--json"], numbers),
        "predict": (["predict", path, place / "new.tsv", "--labelled", "-o", f"{out}.csv", "--json"], numbers),
        "resume": (["train", "--resume", path, "--json"], numbers),
        "runs": (["runs", path, "--json"], lambda done: None),
        "compress": (
            ["compress-embeddings", path, "-o", out, *COMPRESS, "--json"],
            lambda done: done.json()["tables"],
        ),
        "export": (["export", path, "-o", f"{out}.pt2", "--json"], lambda done: done.json()["checks"]),
    }


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and "best" not in file.parts)


def _change(value: Any, random_: random.Random) -> Any:
    """The value with one entry somewhere replaced or removed."""
    if not isinstance(value, dict | list) or not value or random_.random() < 0.15:
        return random_.choice(JUNK)
    key = random_.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if random_.random() < 0.15:
        del value[key]
    else:
        value[key] = _change(value[key], random_)
    return value


def _changed_entry(file: Path, random_: random.Random) -> None:
    """An entry of JSON, or of a line of it; something else of other files."""
    try:
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        number = random_.randrange(len(lines))
        lines[number] = json.dumps(_change(json.loads(lines[number]), random_))
        file.write_text("\n".join(lines) + "\n")
    except (UnicodeDecodeError, json.JSONDecodeError):
        file.write_bytes(file.read_bytes()[::-1])


def _flip(file: Path, random_: random.Random) -> None:
    content = bytearray(file.read_bytes() or b"x")
    content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
    file.write_bytes(content)


def _replaced(file: Path, make: Callable[[], None]) -> None:
    file.unlink()
    make()


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    "cut": lambda file, random_: os.truncate(file, random_.randrange(file.stat().st_size + 1)),
    "flip": _flip,
    "remove": lambda file, random_: file.unlink(),
    "empty": lambda file, random_: os.truncate(file, 0),
    "text": lambda file, random_: file.write_text(random_.choice(TEXTS)),
    "entry": _changed_entry,
    "link": lambda file, random_: _replaced(file, lambda: file.symlink_to(file.parents[-1] / "tmp" / "nowhere")),
    "directory": lambda file, random_: _replaced(file, file.mkdir),
    "pipe": lambda file, random_: _replaced(file, lambda: os.mkfifo(file)),
}


def _seal(path: Path) -> None:
    """Makes checksums fit, as an attacker would."""
    for complete in path.glob("checkpoints/step-*/complete.json"):
        try:
            content = json.loads(complete.read_text() if complete.is_file() else "")
            for name in content["files"]:
                data = read_file(complete.parent / name, most=1 << 30)
                content["files"][name] = [len(data), zlib.crc32(data)]
            complete.write_text(json.dumps(content))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    manifest = path / "manifest.json"
    if manifest.is_file():
        try:
            content = json.loads(manifest.read_text())
            content.pop("crc32", None)
            for name, entry in content["files"].items():
                data = read_file(path / name, most=1 << 30)
                entry.update(bytes=len(data), crc32=zlib.crc32(data))
            manifest.write_text(json.dumps(content))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return


def _damaged_answers(place: Path, whole: Path, tmp_path: Path, names: list[str], seed: int) -> Counter[str]:
    """Damages copies of a directory, runs a command on each, and counts the kinds of answers."""
    random_, answers = random.Random(seed), Counter[str]()
    good: dict[str, Any] = {}
    for name in names:
        copy = Path(shutil.copytree(whole, tmp_path / "whole" / whole.name, symlinks=True))
        arguments, numbers = _commands(copy, place)[name]
        done = in_process(*arguments)
        good[name] = numbers(done) if done.status == 0 else None
        shutil.rmtree(tmp_path / "whole")
    for number in range(DAMAGES):
        directory = tmp_path / "damaged"
        copy = Path(shutil.copytree(whole, directory / whole.name, symlinks=True))
        file = random_.choice(_files(copy))
        kind = random_.choice(list(DAMAGE))
        DAMAGE[kind](file, random_)
        sealed = random_.random() < 0.4
        if sealed:
            _seal(copy)
        # An export takes seconds.
        name = random_.choice([name for name in names if name != "export" or number % 10 == 0])
        arguments, numbers = _commands(copy, place)[name]
        done = in_process(*arguments)
        where = f"{number}: {name} after {kind} of {file.relative_to(copy)}, {sealed=}"
        assert "Traceback" not in done.err, f"{where}\n{done.err}"
        assert done.status in (0, 2), f"{where}: status {done.status}\n{done.err}"
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (done.status == 2), f"{where}\n{done.err}"
        assert "weights_only" not in done.err, f"{where}\n{done.err}"
        if done.status == 0 and not sealed:
            assert numbers(done) == good[name], where
        answers["refused" if done.status else "sealed" if sealed else "right"] += 1
        shutil.rmtree(directory)
    return answers


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_damaged_run_gives_right_numbers_or_one_line(place: Path, tmp_path: Path, seed: int):
    names = ["evaluate", "predict", "resume", "runs", "compress", "export"]
    answers = _damaged_answers(place, place / "run", tmp_path, names, seed)
    assert answers["refused"] > DAMAGES // 10
    assert answers["right"] > DAMAGES // 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [3, 4])
def test_a_damaged_compressed_model_gives_right_numbers_or_one_line(place: Path, tmp_path: Path, seed: int):
    names = ["evaluate", "predict", "resume", "compress", "export"]
    answers = _damaged_answers(place, place / "small", tmp_path, names, seed)
    assert answers["refused"] > DAMAGES // 10
    assert answers["right"] > DAMAGES // 10


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
