"""A store that changes during training: one line with the file and the block, exit status 2."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrmctl.data.store.writer import write_store
from dlrmctl.data.synthetic.synthetic import Synthetic
from tests.dlrmctl.commands import SMALL, done_of_ranks, start, start_as_ranks, wait_for_checkpoint


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tampered") / "store"
    write_store(Synthetic(0, 60_000, 1000, 1000), path)
    return path


def flip_every_block(file: Path) -> None:
    size = file.stat().st_size
    with file.open("r+b") as opened:
        for place in range(1000, size, size // 100):
            opened.seek(place)
            [byte] = opened.read(1)
            opened.seek(place)
            opened.write(bytes([byte ^ 4]))


def cut_short(file: Path) -> None:
    os.truncate(file, 1000)


@pytest.mark.parametrize(
    ("tamper", "message", "ranks"),
    [(flip_every_block, "changed since it was prepared", 2), (cut_short, "cut short", 1)],
)
def test_a_store_that_changes_during_training_stops_it(
    store: Path, tmp_path: Path, tamper: Callable[[Path], None], message: str, ranks: int
):
    copy = shutil.copytree(store, tmp_path / "store")
    arguments = [*SMALL[2:], "--data", copy, "--checkpoint-every", "20", "--batch-size", "512"]
    run = tmp_path / "run"
    words = ("train", *arguments, "--epochs", "50", "--run-dir", run)
    of_ranks = start_as_ranks(ranks, *words, cwd=tmp_path) if ranks > 1 else [start(*words, cwd=tmp_path)]
    wait_for_checkpoint(run, of_ranks[0])
    tamper(copy / "train.bin")
    done = done_of_ranks(of_ranks)
    assert done.status == 2, done.err
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.err
    assert re.fullmatch(rf"error: {re.escape(str(copy))}/train\.bin, block \d+: {message}", errors[0])
    assert "hint: prepare it again from the raw files" in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
