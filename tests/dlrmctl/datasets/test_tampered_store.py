"""A store that changes during training: one line with the file and the block, exit status 2."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrmctl.data.store.writer import write_store
from dlrmctl.data.synthetic.synthetic import Synthetic
from tests.dlrmctl.commands import SMALL, start, wait_for_checkpoint


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tampered") / "store"
    write_store(Synthetic(0, 300_000, 1000, 1000), path)
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
    ("tamper", "message", "nproc"),
    [(flip_every_block, "changed since it was prepared", 2), (cut_short, "cut short", 1)],
)
def test_a_store_that_changes_during_training_stops_it(
    store: Path, tmp_path: Path, tamper: Callable[[Path], None], message: str, nproc: int
):
    copy = shutil.copytree(store, tmp_path / "store")
    arguments = [*SMALL[2:], "--data", copy, "--checkpoint-every", "20", "--batch-size", "512"]
    run = tmp_path / "run"
    process = start("train", *arguments, "--epochs", "50", "--run-dir", run, "--nproc", str(nproc), cwd=tmp_path)
    wait_for_checkpoint(run, process)
    tamper(copy / "train.bin")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert re.fullmatch(rf"error: {re.escape(str(copy))}/train\.bin, block \d+: {message}", errors[0])
    assert "hint: prepare it again from the raw files" in err
    assert "Traceback" not in err
    assert out == ""
