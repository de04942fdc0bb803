"""This process among the ranks: its device and process group."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dlrmctl.console.console import warn
from dlrmctl.errors import UserError
from dlrmctl.ranks.launch import RENDEZVOUS, launch_environment

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # a checkpoint of large tables may delay the others for long
# Messages of gloo, NCCL and the store when a peer has died.
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


@dataclass(frozen=True)
class Ranks:
    """This process among its ranks; `group` spans all of them."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    group: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints results."""
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Returns rank 0's value, on every rank."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, group=self.group, device=torch.device(self.device.type))
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's value, in rank order, on every rank."""
        everyone: list[Any] = [value]
        if self.world_size > 1:
            everyone = [None] * self.world_size
            dist.all_gather_object(everyone, value, group=self.group)
        return everyone


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Joins the ranks that the environment describes, or is the only rank; leaves on exit.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: if the device does not exist or the rendezvous fails.
    """
    environment = launch_environment()
    chosen = _device(device, environment.local_rank, environment.local_world_size)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    try:
        if environment.world_size == 1 and not environment.from_launcher:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=COLLECTIVE_TIMEOUT)
        else:
            place = os.environ.get(RENDEZVOUS, "env://")
            store, _, _ = next(
                dist.rendezvous(place, environment.rank, environment.world_size, timeout=COLLECTIVE_TIMEOUT)
            )
            # torchrun keeps its store when it restarts ranks; the old addresses must not be read.
            store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            dist.init_process_group(
                backend,
                store=store,
                rank=environment.rank,
                world_size=environment.world_size,
                timeout=COLLECTIVE_TIMEOUT,
            )
    except (dist.DistNetworkError, dist.DistStoreError, ValueError) as problem:
        raise _rendezvous_error(problem) from None
    try:
        group = dist.group.WORLD
        assert group is not None
        yield Ranks(environment.rank, environment.world_size, environment.local_world_size, chosen, group)
    except dist.DistBackendError as problem:
        raise UserError(f"rank {environment.rank}: {chosen.type} communication failed: {_last_line(problem)}") from None
    except RuntimeError as problem:
        if any(words in str(problem) for words in _LOST_PEER):
            raise UserError(
                f"rank {environment.rank} lost contact with another rank",
                "see the message of that rank; --resume continues the run",
            ) from None
        raise
    finally:
        with suppress(Exception):  # a peer may have ended already, and its error is the one to show
            dist.destroy_process_group()


def _device(wanted: str, local_rank: int, local_world_size: int) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("train.device = cuda, but torch sees no CUDA device", "--device cpu, or check the driver")
    count = torch.cuda.device_count()
    if local_world_size > count and local_rank == 0:
        warn(f"{local_world_size} ranks on {count} GPUs: ranks will share a GPU, which NCCL may refuse")
    torch.cuda.set_device(local_rank % count)
    return torch.device("cuda", local_rank % count)


def _last_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[-1]


def _rendezvous_error(problem: Exception) -> UserError:
    address, port = os.environ.get("MASTER_ADDR", "?"), os.environ.get("MASTER_PORT", "?")
    if "EADDRINUSE" in str(problem) or "address already in use" in str(problem).lower():
        return UserError(f"MASTER_PORT = {port} is in use on this machine", "choose another --master-port, or 0")
    return UserError(
        f"no rendezvous at {address}:{port}: {str(problem).splitlines()[0]}",
        "check MASTER_ADDR, MASTER_PORT and that every node was started",
    )
