"""Reads whole checkpoints, to compare them bit by bit."""

from pathlib import Path

import torch
from torch import Tensor

from dlrmctl.rundir.tensor_files import read_tensor, stored_tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint in one piece, by name."""
    return {name: read_tensor(path, stored) for name, stored in stored_tensors(path).items()}


def assert_bitwise_equal(a: Path, b: Path) -> None:
    ours, theirs = read_tensors(a), read_tensors(b)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
