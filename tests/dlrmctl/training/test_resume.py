"""Interrupted runs: killed, stopped, or continued on another number of ranks."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dlrmctl.cli import main as entry
from dlrmctl.datasets.open import open_source
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.checkpoint import Checkpoints
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.settings.config import resolve
from dlrmctl.training.train import Trainer
from tests.dlrmctl.checkpoints import assert_bitwise_equal, read_tensors
from tests.dlrmctl.commands import SMALL, environment, in_process, run_as_ranks, start, wait_for_checkpoint
from tests.dlrmctl.damages import seal
from tests.forked import Forked
from tests.ranks import run_ranks

RUN = [*SMALL, "--synthetic-rows", "8192", "--checkpoint-every", "6", "--evaluations", "2"]
STEPS = 8_192 // 256


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    path = tmp_path_factory.mktemp("whole") / "run"
    done = in_process("train", *RUN, "--run-dir", path)
    assert done.status == 0, done.err
    return path


def _lines(run_dir: Path) -> list[dict]:
    entries = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k != "examples_per_second"} for entry in entries]


def _results(run_dir: Path) -> dict:
    results = json.loads((run_dir / "results.json").read_text())
    return {k: v for k, v in results.items() if k != "run"}


def test_a_killed_run_ends_like_one_that_was_never_killed(whole: Path, tmp_path: Path):
    path = tmp_path / "run"
    process = start("train", *RUN, "--run-dir", path, cwd=tmp_path)
    wait_for_checkpoint(path, process, f"step-{6 * random.randint(1, 3)}")
    time.sleep(random.random() * 0.1)  # anywhere: in a step, in a save
    process.kill()
    process.communicate()
    assert not (path / "results.json").exists()
    done = in_process("train", "--resume", path)
    assert done.status == 0, done.err
    assert "resumed at step" in done.err
    assert_bitwise_equal(path / "checkpoints" / f"step-{STEPS}", whole / "checkpoints" / f"step-{STEPS}")
    assert _lines(path) == _lines(whole)
    assert _results(path) == _results(whole)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(whole: Path, tmp_path: Path):
    path = tmp_path / "run"
    process = start("train", *RUN, "--run-dir", path, cwd=tmp_path)
    wait_for_checkpoint(path, process)
    while True:  # stopped, so that what is seen is what the kill meets
        process.send_signal(signal.SIGSTOP)
        unfinished = list(path.glob("checkpoints/step-*.partial"))
        if unfinished:
            break
        process.send_signal(signal.SIGCONT)
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert unfinished[0].is_dir()
    done = in_process("train", "--resume", path)
    assert done.status == 0, done.err
    assert "resumed at step" in done.err
    assert not list(path.glob("checkpoints/step-*.partial"))
    assert_bitwise_equal(path / "checkpoints" / f"step-{STEPS}", whole / "checkpoints" / f"step-{STEPS}")
    assert _lines(path) == _lines(whole)


def test_training_that_waits_for_its_checkpoints_is_the_same(whole: Path, tmp_path: Path):
    done = in_process("train", *RUN, "--run-dir", tmp_path / "run", "--no-async-save")
    assert done.status == 0, done.err
    for checkpoint in (whole / "checkpoints").iterdir():
        assert_bitwise_equal(tmp_path / "run" / "checkpoints" / checkpoint.name, checkpoint)
    assert _lines(tmp_path / "run") == _lines(whole)
    assert _results(tmp_path / "run") == _results(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(whole: Path, tmp_path: Path, number: signal.Signals):
    path = tmp_path / "run"
    process = start("train", *RUN, "--run-dir", path, cwd=tmp_path)
    wait_for_checkpoint(path, process, "step-6")
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 128 + number
    assert "saved; continue with: dlrmctl train --resume" in err
    assert "Traceback" not in err
    done = in_process("train", "--resume", path)
    assert done.status == 0, done.err
    assert_bitwise_equal(path / "checkpoints" / f"step-{STEPS}", whole / "checkpoints" / f"step-{STEPS}")
    assert _lines(path) == _lines(whole)


def test_a_signal_to_the_whole_job_saves_and_leaves(tmp_path: Path):
    """As schedulers send it: to the launcher and to every rank, which then hear of it twice."""
    path = tmp_path / "run"
    process = start("train", *RUN, "--synthetic-rows", "2000000", "--run-dir", path, "--nproc", "2", cwd=tmp_path)
    wait_for_checkpoint(path, process, "step-6")
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [process.pid, *map(int, ranks)]:
        os.kill(pid, signal.SIGTERM)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 143, err
    assert "saved; continue with" in err
    assert "error" not in err


def _train_until_killed_while_tidying(words: list[str]) -> None:
    tidy, calls = Checkpoints.keep, list[tuple[object, ...]]()

    def keep(self: Checkpoints, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 4:  # the checkpoint is written, nothing says yet which is the best
            os.kill(os.getpid(), signal.SIGKILL)
        tidy(self, *arguments)

    Checkpoints.keep = keep
    entry.run_command(words)


def test_a_kill_between_saving_and_tidying_loses_nothing(whole: Path, tmp_path: Path):
    path = tmp_path / "run"
    words = ["train", *RUN, "--run-dir", str(path)]
    process = Forked(_train_until_killed_while_tidying, words, cwd=tmp_path, environment=environment())
    assert process.wait(120) == -signal.SIGKILL, process.communicate()
    done = in_process("train", "--resume", path)
    assert done.status == 0, done.err
    assert_bitwise_equal(path / "checkpoints" / "best", whole / "checkpoints" / "best")
    assert _results(path) == _results(whole)


def test_a_best_checkpoint_that_was_removed_is_replaced_by_the_next_best(whole: Path, tmp_path: Path):
    path = Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))
    newest = max((path / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]))
    assert (path / "checkpoints" / "best").resolve() == newest  # the hint for a damaged one is to remove it
    shutil.rmtree(newest)
    done = in_process("train", "--resume", path)
    assert done.status == 0, done.err
    assert_bitwise_equal(path / "checkpoints" / "best", whole / "checkpoints" / "best")


def test_a_run_goes_on_with_the_settings_it_was_resumed_with(whole: Path, tmp_path: Path):
    path = Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))
    process = start("train", "--resume", path, "--epochs", "3", cwd=tmp_path)
    wait_for_checkpoint(path, process, f"step-{STEPS + STEPS // 2}")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 143, err
    done = in_process("train", "--resume", path, "--json")
    assert done.status == 0, done.err
    assert done.json()["steps"] == 3 * STEPS


def test_a_run_of_another_order_of_examples_continues_between_epochs_only(whole: Path, tmp_path: Path):
    path = Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))
    for file in (path / "checkpoints").glob("step-*/state.json"):
        state = json.loads(file.read_text())
        del state["progress"]["order"]  # as in checkpoints of versions with the first order
        file.write_text(json.dumps(state))
    seal(path)
    between = Path(shutil.copytree(path, tmp_path / "between", symlinks=True))
    done = in_process("train", "--resume", between, "--epochs", "2", "--max-steps", STEPS + 3, "--json")
    assert done.status == 0, done.err
    assert done.json()["steps"] == STEPS + 3
    shutil.rmtree(path / "checkpoints" / f"step-{STEPS}")
    newest = max((path / "checkpoints").glob("step-*"), key=lambda p: int(p.name[5:]))
    done = in_process("train", "--resume", path)
    assert done.status == 2
    assert done.err.splitlines()[-2:] == [
        f"error: {newest} is {256 * int(newest.name[5:]):,} examples into an epoch that another version of dlrmctl "
        "shuffled in another order",
        f"hint: start a new run from its weights: dlrmctl train --init-from {path}",
    ]


def test_saved_on_two_ranks_resumed_on_one(tmp_path: Path):
    """What two ranks saved at step 20 one rank continues: the same run to rounding."""
    gentle = ["--dense-lr", "0.01", "--sparse-lr", "0.01", "--qr-lr", "0.01"]
    common = [*RUN, "--dense-optimizer", "sgd", *gentle]
    first = run_as_ranks(2, "train", *common, "--max-steps", "20", "--run-dir", tmp_path / "a", cwd=tmp_path)
    assert first.status == 0, first.err
    second = in_process("train", "--resume", tmp_path / "a", "--max-steps", "28", "--json")
    assert second.status == 0, second.err
    straight = in_process("train", *common, "--max-steps", "28", "--run-dir", tmp_path / "b", "--json")
    assert straight.status == 0, straight.err
    # Two ranks sum in another order than one, 2**-24 = 6e-8 each time. These small rates of SGD do not amplify it, so
    # what is left after 28 steps is a few dozen of them; a lost accumulator or counter shows in the second digit.
    assert second.json()["validation"]["log_loss"] == pytest.approx(straight.json()["validation"]["log_loss"], rel=2e-6)
    ours = read_tensors(tmp_path / "a" / "checkpoints" / "step-28")
    theirs = read_tensors(tmp_path / "b" / "checkpoints" / "step-28")
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith("weight"):
            scale = float(theirs[name].abs().max())
            assert float((ours[name] - theirs[name]).abs().max()) <= 1e-4 * scale, name


def _resume_and_save_again(run_dir: Path, out: Path) -> None:
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.get_world_size(), torch.device("cpu"), dist.group.WORLD)
    run_directory = RunDirectory(run_dir, writes=False)
    config = resolve(run_directory.settings(), {})
    trainer = Trainer(config, open_source(config.data), run_directory, ranks, quiet=True)
    trainer.resume()
    Checkpoints(out, ranks).save(1, trainer._tensors(), {})


def test_a_checkpoint_of_two_ranks_is_the_same_state_on_one_two_and_three(tmp_path: Path):
    """Tables, row-wise AdaGrad, MLPs and Shampoo, table-wise and row-wise, bit for bit."""
    arguments = ["--batch-size", "240", "--max-steps", "12", "--sharding", "row_wise"]
    done = run_as_ranks(2, "train", *RUN, *arguments, "--run-dir", tmp_path / "run", cwd=tmp_path)
    assert done.status == 0, done.err
    saved = tmp_path / "run" / "checkpoints" / "step-12"
    assert any("factor" in name for name in read_tensors(saved))
    for world_size in (1, 2, 3):
        run_ranks(_resume_and_save_again, world_size, tmp_path / "run", tmp_path / str(world_size))
        assert_bitwise_equal(tmp_path / str(world_size) / "step-1", saved)


def test_a_finished_run_can_be_continued_and_repeated(whole: Path):
    done = in_process("train", "--resume", whole, "--json")
    assert done.status == 0, done.err
    assert {k: v for k, v in done.json().items() if k != "run"} == _results(whole)


def test_run_toml_repeats_the_run(whole: Path, tmp_path: Path):
    done = in_process("train", "--config", whole / "run.toml", "--run-dir", tmp_path / "again")
    assert done.status == 0, done.err
    assert_bitwise_equal(tmp_path / "again" / "checkpoints" / "best", whole / "checkpoints" / "best")
    assert _lines(tmp_path / "again") == _lines(whole)
