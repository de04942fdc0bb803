"""Joining ranks: the device of each, and errors that end a group."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from dlrmctl.errors import UserError
from dlrmctl.ranks.group import _of_this_attempt, process_group, refuse_shared_gpus


def test_ranks_that_share_a_gpu_are_named():
    refuse_shared_gpus(["H100 a of host-1", "H100 b of host-1", "H100 a of host-2"])
    with pytest.raises(UserError, match="ranks 1 and 2 have the same GPU, H100 b of host-1"):
        refuse_shared_gpus(["H100 a of host-1", "H100 b of host-1", "H100 b of host-1"])


def test_a_full_gpu_is_one_line_with_a_way_out():
    full = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which"
    with pytest.raises(UserError, match=r"Tried to allocate 2\.00 GiB$") as caught, process_group("cpu"):
        raise torch.OutOfMemoryError(full)
    assert caught.value.message == f"rank 0: the memory of the GPU is full: {full.split('. GPU')[0]}"
    assert "--batch-size" in str(caught.value.hint)


def test_a_master_address_that_does_not_resolve_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"MASTER_ADDR = nowhere\.invalid has no address"), process_group("cpu"):
        pass


def test_an_attempt_does_not_read_what_earlier_ones_left_in_the_store():
    store = dist.HashStore()

    def attempt(world_size: int) -> list[dist.Store]:
        with ThreadPoolExecutor(world_size) as ranks:
            parts = [ranks.submit(_of_this_attempt, store, rank, world_size) for rank in range(world_size)]
        return [part.result() for part in parts]

    for number, world_size in enumerate((4, 3, 1, 3)):
        parts = attempt(world_size)
        assert not parts[-1].check(["address"])
        parts[0].set("address", str(number))
        assert [part.get("address") for part in parts] == [str(number).encode()] * world_size
