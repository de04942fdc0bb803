"""`dlrmctl compress-embeddings` on files of tensors, and --expand."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlrmctl.compress import expand as plain
from dlrmctl.compress.compression import compress as compress_tables
from dlrmctl.compress.request import Request
from dlrmctl.compress.sources import TensorFiles
from dlrmctl.console.progress import BarDisplay
from tests.dlrmctl.commands import Done, in_process


def compress(file: Path, out: Path, *arguments: object) -> Done:
    return in_process("compress-embeddings", file, "-o", out, "--method", "int8", *map(str, arguments))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    save_file({"a.0": torch.randn(40, 8), "b.0": torch.randn(30, 8), "c.0": torch.randn(20, 8)}, tmp_path / "m.st")
    (tmp_path / "m.st").rename(tmp_path / "m.safetensors")
    done = compress(tmp_path / "m.safetensors", tmp_path / "small", "--tables", "a*,b*")
    assert done.status == 0, done.err
    return tmp_path / "small"


def test_several_patterns_choose_the_tensors_that_match_any(small: Path):
    report = json.loads((small / "report.json").read_text())
    assert [table["name"] for table in report["tables"]] == ["a.0", "b.0"]
    assert sum(report["files"].values()) == sum(path.stat().st_size for path in small.iterdir())


class _Recorded(BarDisplay):
    """Keeps the shares of the work of every phase that were shown."""

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {}
        super().__init__()

    def show(self, about: str = "", *, line: str | None = None, now: bool = False) -> None:
        if self._total:
            self.phases.setdefault(self._what, []).append(self._done / self._total)


def test_progress_grows_with_every_method_and_every_pass_over_a_table(small: Path):
    tables = TensorFiles(small.parent / "m.safetensors", "a*")
    request = Request(None, 3.0, None, 0.0, "a*", 1, "auto")
    compress_tables(tables, request, trial=None, counts=lambda table: None, progress=(progress := _Recorded()))
    assert list(progress.phases) == ["estimating errors", "fitting tables"]
    for shares in progress.phases.values():
        assert len(set(shares)) > 3
        assert shares == sorted(shares)
        assert shares[-1] == 1


def test_a_pattern_that_matches_nothing_is_said_though_another_does(small: Path):
    done = compress(small.parent / "m.safetensors", small.parent / "x", "--tables", "a*,z*")
    assert done.status == 2
    assert "no tensor is called 'z*'" in done.err


@pytest.mark.parametrize(
    ("tensors", "arguments", "message"),
    [
        ({"a/b": torch.ones(40, 8)}, [], "the name 'a/b' cannot be stored"),
        ({"a": torch.ones(0, 16)}, [], "a has shape [0, 16]"),
        ({"a": torch.ones(100, 0)}, [], "a has shape [100, 0]"),
        ({"a": torch.ones(40, 8, dtype=torch.int64)}, [], "no tensor of --tables * is two-dimensional and floating"),
        ({"a": torch.ones(40, 8), "bias": torch.ones(8)}, ["--tables", "a,bias"], "bias has shape [8]"),
    ],
)
def test_a_tensor_that_cannot_be_a_table_is_one_line_before_anything_is_fitted(
    tmp_path: Path, tensors: dict[str, torch.Tensor], arguments: list[str], message: str
):
    torch.save(tensors, tmp_path / "m.pt")
    save_file(tensors, tmp_path / "m.safetensors")
    for file in ("m.pt", "m.safetensors"):
        done = compress(tmp_path / file, tmp_path / "x", *arguments)
        assert done.status == 2
        assert message in done.err
        assert "fitted" not in done.err
        assert "Traceback" not in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "m.safetensors"]


def test_biases_and_integers_of_a_state_dict_are_left_out_and_counted(tmp_path: Path):
    tensors = {
        "emb": torch.randn(40, 8),
        "bias.0": torch.ones(8),
        "bias.1": torch.ones(4),
        "ids": torch.ones(40, 8, dtype=torch.int32),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    done = compress(tmp_path / "m.safetensors", tmp_path / "x", "--json")
    assert done.status == 0, done.err
    assert [table["name"] for table in done.json()["tables"]] == ["emb"]
    assert "skipped 1 tensor of other types" in done.err
    assert "skipped 2 tensors without two dimensions" in done.err


def test_a_name_in_two_files_is_refused(tmp_path: Path):
    (tmp_path / "d").mkdir()
    for file in ("1", "2"):
        save_file({"emb": torch.randn(40, 8)}, tmp_path / "d" / f"{file}.safetensors")
    done = compress(tmp_path / "d", tmp_path / "x")
    assert done.status == 2
    assert "1.safetensors and 2.safetensors both contain emb" in done.err


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 2), (torch.bfloat16, 2), (torch.float64, 8)])
def test_sizes_before_are_those_of_the_source(tmp_path: Path, dtype: torch.dtype, size: int):
    save_file({"emb": torch.randn(400, 8).to(dtype), "few": torch.randn(3, 8).to(dtype)}, tmp_path / "m.safetensors")
    report = compress(tmp_path / "m.safetensors", tmp_path / "x", "--json").json()
    assert report["bytes_before"] == size * 403 * 8
    assert [table["bytes_before"] for table in report["tables"]] == [size * 400 * 8, size * 3 * 8]
    stored = [load_file(path) for path in (tmp_path / "x").glob("tables-*.safetensors")]
    assert report["bytes_after"] == sum(tensor.nbytes for part in stored for tensor in part.values())


def test_files_may_be_read_by_whom_the_umask_says(small: Path):
    assert in_process("compress-embeddings", small, "-o", small.parent / "plain", "--expand").status == 0
    files = [*small.iterdir(), *(small.parent / "plain").iterdir()]
    before = os.umask(0)
    os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~before}


def test_a_dry_expansion_writes_nothing_and_json_says_what_a_real_one_writes(small: Path):
    arguments = ("compress-embeddings", small, "-o", small.parent / "plain", "--expand", "--json")
    dry = in_process(*arguments, "--dry-run")
    assert dry.status == 0
    assert not (small.parent / "plain").exists()
    wet = in_process(*arguments)
    assert dry.json() == wet.json()
    assert wet.json()["bytes"] == 4 * (40 + 30) * 8


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_expansion_leaves_nothing_and_a_directory_of_the_users_stays(
    small: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException
):
    theirs = small.parent / "plain.partial"
    theirs.mkdir()
    names = sorted(path.name for path in small.parent.iterdir())
    arguments = ("compress-embeddings", small, "-o", small.parent / "plain", "--expand")

    def fail(*_: object) -> None:
        raise problem

    with monkeypatch.context() as patch:
        patch.setattr(plain, "save_tensors", fail)
        done = in_process(*arguments)
    assert done.status == (2 if isinstance(problem, OSError) else 130)
    assert sorted(path.name for path in small.parent.iterdir()) == names
    assert in_process(*arguments).status == 0
    assert theirs.is_dir()
