"""`--batch-schedule gns`: the batch grows, is recorded, and resumes to the bit."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.dlrmctl.checkpoints import assert_bitwise_equal
from tests.dlrmctl.commands import SMALL, in_process, run_as_ranks

RUN = [*SMALL, "--synthetic-rows", "8000", "--batch-size", "64", "--evaluations", "2"]
GROWING = ["--batch-schedule", "gns", "--dense-optimizer", "signum", "--warmup-steps", "0", "--log-every", "1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("growing") / "run"
    done = in_process("train", *RUN, *GROWING, "--run-dir", path)
    assert done.status == 0, done.err
    assert "the batch grows from 64 to at most 512 by the noise of gradients in the l1 geometry, theta 0.7" in done.err
    return path


def _lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_the_batch_grows_and_rates_grow_by_its_root(whole: Path):
    changes = _lines(whole, "batch")
    assert changes
    assert all(change["step"] % 20 == 0 and change["batch_size"] % 8 == 0 for change in changes)
    steps = _lines(whole, "train")
    assert len(steps) == json.loads((whole / "results.json").read_text())["steps"] < 8_000 // 64
    left, size = 8_000, 64
    for step in steps:
        assert step["batch_size"] == size
        assert step["dense_lr"] == pytest.approx(3e-5 * math.sqrt(size / 64))
        left -= size
        size = next((change["batch_size"] for change in changes if change["step"] == step["step"]), size)
    assert 0 <= left < size  # every example once, but for the rest of the last batch


def test_a_run_cut_after_a_change_ends_like_a_whole_one(whole: Path, tmp_path: Path):
    first = _lines(whole, "batch")[0]["step"]
    done = in_process("train", *RUN, *GROWING, "--max-steps", str(first + 3), "--run-dir", tmp_path / "cut")
    assert done.status == 0, done.err
    assert _lines(tmp_path / "cut", "batch") == _lines(whole, "batch")[:1]
    done = in_process("train", "--resume", tmp_path / "cut", "--max-steps", "0")
    assert done.status == 0, done.err
    last = f"checkpoints/step-{json.loads((whole / 'results.json').read_text())['steps']}"
    assert_bitwise_equal(tmp_path / "cut" / last, whole / last)
    assert _lines(tmp_path / "cut", "batch") == _lines(whole, "batch")


def test_two_ranks_take_the_same_batches(whole: Path, tmp_path: Path):
    done = run_as_ranks(2, "train", *RUN, *GROWING, "--run-dir", tmp_path / "two", cwd=tmp_path)
    assert done.status == 0, done.err
    ours, alone = _lines(tmp_path / "two", "batch"), _lines(whole, "batch")
    assert [change["step"] for change in ours] == [change["step"] for change in alone]
    for change, other in zip(ours, alone, strict=True):
        assert change["wanted"] == pytest.approx(other["wanted"], rel=0.01)  # signs of tiny momenta differ


def test_for_other_optimizers_it_is_a_proxy_and_said(tmp_path: Path):
    done = in_process("train", *RUN, "--batch-schedule", "gns", "--max-steps", "2", "--run-dir", tmp_path / "run")
    assert done.status == 0, done.err
    assert "in the spectral geometry, a proxy for shampoo, theta 1" in done.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-max", "512"], "train.batch_max = 512 needs train.batch_schedule = gns, not constant"),
        ([*GROWING, "--gns-geometry", "spectral"], "train.gns_geometry = spectral does not fit optim.dense_optimizer"),
        ([*GROWING, "--batch-max", "32"], "train.batch_max = 32 is below the first batch, train.batch_size = 64"),
        ([*GROWING, "--batch-size", "8"], "train.batch_size = 8 is too small to measure the noise of its gradients"),
        ([*GROWING, "--decay", "cosine"], "has no planned number of steps"),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) else "",
)
def test_settings_that_cannot_work_are_refused(flags: list[str], message: str):
    done = in_process("train", *RUN, *flags)
    assert done.status == 2
    assert message in done.err
