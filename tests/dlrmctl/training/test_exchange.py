"""`--compress-a2a` and `--compress-dense` in whole trainings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dlrmctl.rundir.stored_tables import CheckpointTables
from tests.dlrmctl.checkpoints import assert_bitwise_equal, read_tensors
from tests.dlrmctl.commands import SMALL, in_process, run_as_ranks

RUN = [*SMALL, "--synthetic-rows", "8000", "--evaluations", "1", "--dense-optimizer", "adagrad"]
COMPRESSED = ["--compress-a2a", "topk:2", "--compress-warmup", "10", "--compress-dense", "dct:10"]
STEPS = 8_000 // 256


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run on two ranks, and one that was cut at step 15."""
    path = tmp_path_factory.mktemp("exchange")
    for name, more in (("whole", []), ("cut", ["--max-steps", "15"])):
        done = run_as_ranks(2, "train", *RUN, *COMPRESSED, *more, "--run-dir", path / name, cwd=path)
        assert done.status == 0, done.err
    return path


def _results(run_dir: Path) -> dict[str, Any]:
    return {k: v for k, v in json.loads((run_dir / "results.json").read_text()).items() if k != "run"}


def test_bytes_are_counted_exactly_and_the_ratio_of_gradients_is_kept(runs: Path):
    exchange = _results(runs / "whole")["exchange"]
    tables, dense = exchange["tables"], exchange["dense"]
    vectors = len(json.loads((runs / "whole" / "plan.json").read_text()))
    assert tables["raw_bytes"] == 2 * 4 * vectors * 8 * 256 * (STEPS - 10)  # there and back, after the warmup
    assert tables["raw_bytes"] * 3 * 2 == tables["sent_bytes"] * 4 * 8
    assert 5 <= dense["numbers_per_number_sent"] <= 20
    saved = read_tensors(runs / "whole" / "checkpoints" / f"step-{STEPS}")
    weights = sum(t.numel() for name, t in saved.items() if name.startswith("left out.0/") and name.endswith("/error"))
    assert dense["raw_bytes"] == 2 * 4 * weights * STEPS


def test_a_model_is_scored_with_the_numbers_that_it_was_trained_with(runs: Path):
    results = _results(runs / "whole")
    evaluated = in_process("evaluate", runs / "whole", "--split", "test", "--json")
    assert evaluated.status == 0, evaluated.err
    # Other lookups than in training, so to the rounding of float32; all numbers of a row would change the third digit.
    assert evaluated.json()["test"]["log_loss"] == pytest.approx(results["test"]["log_loss"], rel=1e-6)
    rows = CheckpointTables(runs / "whole" / "checkpoints" / f"step-{STEPS}").weight("cat_1")
    assert ((rows != 0).sum(1) == 2).all()


def test_a_run_cut_with_gradients_left_out_ends_like_a_whole_one(runs: Path, tmp_path: Path):
    cut = Path(shutil.copytree(runs / "cut", tmp_path / "cut", symlinks=True))
    done = run_as_ranks(2, "train", "--resume", cut, "--max-steps", "0", cwd=tmp_path)
    assert done.status == 0, done.err
    last = f"checkpoints/step-{STEPS}"
    assert any(name.startswith("left out.1/") for name in read_tensors(cut / last))
    assert_bitwise_equal(cut / last, runs / "whole" / last)
    assert _results(cut) == _results(runs / "whole")


def test_on_another_number_of_ranks_what_was_left_out_is_dropped_and_said(runs: Path, tmp_path: Path):
    cut = Path(shutil.copytree(runs / "cut", tmp_path / "cut", symlinks=True))
    done = in_process("train", "--resume", cut, "--max-steps", "17")
    assert done.status == 0, done.err
    assert "--compress-dense left out so far are dropped: they are of 2 ranks" in done.err
    assert "one rank exchanges nothing, so nothing is compressed" in done.err


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (["--compress-a2a", "topk:9"], "keeps 9 numbers of each vector, and embeddings.dim = 8", "topk:2"),
        (["--compress-a2a", "topk:0"], "must be none, topk:K with K of at least 1", "topk:4"),
        (["--compress-a2a", "fp8"], "must be none, topk:K with K of at least 1, fp16, bf16 or int8", ""),
        (["--compress-warmup", "5"], "needs train.compress_a2a, not none", "topk:4"),
        (["--compress-dense", "100"], "must be none, or dct:RATIO", "dct:100"),
        (["--dct-refresh", "5"], "needs train.compress_dense, not none", "dct:100"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_settings_that_cannot_work_are_refused(flags: list[str], message: str, hint: str):
    done = in_process("train", *RUN, *flags)
    assert done.status == 2
    assert message in done.err
    assert hint in done.err


def test_a_table_that_a_codec_cannot_serve_is_named(tmp_path: Path):
    arguments = ["--compress-a2a", "int8", "--sharding", "row_wise", "--run-dir", tmp_path / "run"]
    done = run_as_ranks(2, "train", *RUN, *arguments, cwd=tmp_path)
    assert done.status == 2
    assert "train.compress_a2a = int8: int8 cannot be used for the table cat_1, whose rows are divided" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run").exists()
