"""Reads whole checkpoints, to compare them bit by bit."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from dlrmctl.rundir.checkpoint import SafeReader


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint in one piece, by name."""
    tensors: dict[str, Any] = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype)
        for name, meta in SafeReader(path).read_metadata().state_dict_metadata.items()
    }
    dcp.load(tensors, storage_reader=SafeReader(path), no_dist=True)
    return tensors


def assert_bitwise_equal(a: Path, b: Path) -> None:
    ours, theirs = read_tensors(a), read_tensors(b)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different
