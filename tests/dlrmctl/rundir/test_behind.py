"""Checkpoints that are written while training continues."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.behind import CheckpointWriter
from dlrmctl.rundir.checkpoint import load
from tests.ranks import run_ranks


def _ranks() -> Ranks:
    group = dist.group.WORLD
    assert group is not None
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.get_world_size(), torch.device("cpu"), group)


def _save_and_go_on(directory: str) -> list[float]:
    """Changes the tensors at once, and sums over the ranks beside the writer; returns what was stored, and the sums."""
    ranks = _ranks()
    writer = CheckpointWriter(Path(directory), ranks, keep=2, behind=True)
    weights = {"network": {"w": torch.zeros(500_000)}, "left out": {f"{ranks.rank}/x": torch.ones(2)}, "optimizer": {}}
    found = []
    with writer.finishing():
        for step in (1, 2, 3):
            weights["network"]["w"].fill_(step)
            writer.save(step, weights, {"step": step}, best_step=1, at_once=step == 3)
            weights["network"]["w"].fill_(-1)
            for _ in range(20):
                total = torch.ones(1000)
                dist.all_reduce(total, group=ranks.group)
                assert float(total.sum()) == 1000 * ranks.world_size
    for step in (2, 3):  # that of step 1 was the best and the second latest
        load(Path(directory) / f"step-{step}", weights, ranks)
        found += [float(weights["network"]["w"].min()), float(weights["network"]["w"].max())]
    return found


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_checkpoint_is_the_state_when_it_was_saved_whatever_follows(tmp_path: Path, world_size: int):
    assert run_ranks(_save_and_go_on, world_size, str(tmp_path)) == [[2, 2, 3, 3]] * world_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-1", "step-2", "step-3"]
    assert json.loads((tmp_path / "step-2" / "state.json").read_text()) == {"step": 2}


def _save_where_nothing_can_be_written(directory: str) -> tuple[list[str], bool]:
    writer = CheckpointWriter(Path(directory), _ranks(), keep=2, behind=True)
    said = []
    writer.save(1, {"network": {"w": torch.zeros(10)}}, {}, None, at_once=False)
    while not writer.has_failed:
        pass
    try:  # the next save tells of it, and so does the end
        writer.save(2, {"network": {"w": torch.zeros(10)}}, {}, None, at_once=False)
    except UserError as problem:
        said.append(problem.message)
    writer.save(3, {"network": {"w": torch.zeros(10)}}, {}, None, at_once=False)
    try:
        with writer.finishing():
            pass
    except UserError as problem:
        said.append(problem.message)
    return said, writer.has_failed


def test_an_error_of_rank_0_is_raised_on_every_rank(tmp_path: Path):
    (tmp_path / "file").touch()
    directory = tmp_path / "file" / "checkpoints"
    expected = [f"{directory}/step-{n}: cannot save: not a directory; there is no earlier checkpoint" for n in (1, 3)]
    assert run_ranks(_save_where_nothing_can_be_written, 2, str(directory)) == [(expected, False)] * 2


def test_the_error_of_training_is_shown_before_that_of_a_checkpoint(tmp_path: Path):
    assert run_ranks(_fail_twice, 1, str(tmp_path)) == ["of training"]


def _fail_twice(directory: str) -> str:
    (Path(directory) / "checkpoints").touch()
    writer = CheckpointWriter(Path(directory) / "checkpoints", _ranks(), keep=2, behind=True)
    try:
        with writer.finishing():
            writer.save(1, {"network": {"w": torch.zeros(10)}}, {}, None, at_once=False)
            raise ValueError("of training")
    except ValueError as problem:
        return str(problem)
    return "nothing"
