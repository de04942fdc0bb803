"""The ranks of a plan: on this machine, or on a cluster described by numbers."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from dlrmctl.embeddings.sharding.memory import available_bytes
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks

CUDA_BYTES = 2**30  # of a rank before it has a model: context, kernels and NCCL's buffers
CPU_BYTES = 320 * 2**20  # the same of a rank on CPUs: Python and its libraries (255 MiB with torch 2.13)
_CUDA_SHARE = 0.03  # of its memory, for workspaces of cuBLAS and FBGEMM, and pieces too small to use


@dataclass(frozen=True)
class Cluster:
    """Equal ranks on equal nodes.

    Attributes:
        ranks_per_node: ranks 0 to ranks_per_node - 1 are on the first node, and so on.
        device_type: "cpu" or "cuda".
        memory_bytes: memory of each rank; None if unknown.
        process_bytes: memory of each rank before it has a model: Python and its libraries, or CUDA's.
        described: whether it was described by numbers, not this machine.
        intra_bandwidth, inter_bandwidth: bytes per second of one rank, to ranks of its node and of others; None if not
            given.
    """

    world_size: int
    ranks_per_node: int
    device_type: str
    memory_bytes: int | None
    process_bytes: int = 0
    described: bool = False
    intra_bandwidth: float | None = None
    inter_bandwidth: float | None = None

    @property
    def nodes(self) -> int:
        return self.world_size // self.ranks_per_node

    @property
    def bandwidths(self) -> tuple[float, float] | None:
        """Both bandwidths, which the planner needs; if only one is given, it stands for the other."""
        intra, inter = self.intra_bandwidth, self.inter_bandwidth
        if intra is None and inter is None:
            return None
        return intra or inter or 0.0, inter or intra or 0.0

    @property
    def name(self) -> str:
        kind = "GPU" if self.device_type == "cuda" else "CPU rank"
        each = "" if self.nodes == 1 else f" on {self.nodes} nodes"
        return f"{self.world_size} {kind}{'s' if self.world_size > 1 else ''}{each}"


def this_machine(device: str, nproc: int, *, intra_bandwidth: float | None = None) -> Cluster:
    """Returns the ranks that `--nproc` would start here, with the memory that is free now.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        UserError: if there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device = cuda, but torch sees no CUDA device", "--hbm 80GiB plans for GPUs elsewhere")
    if device != "cpu" and torch.cuda.is_available():
        count = torch.cuda.device_count()
        free = [available_bytes(torch.device("cuda", i)) or 0 for i in range(min(nproc, count))]
        shared = -(-nproc // count)  # ranks on one GPU
        each = min(free) // shared
        return Cluster(nproc, nproc, "cuda", each, process_bytes=_cuda_bytes(each), intra_bandwidth=intra_bandwidth)
    free_bytes, own = available_bytes(torch.device("cpu")), _own_bytes()
    memory = None if free_bytes is None else (free_bytes + own) // nproc  # what this process has, is free when it ends
    return Cluster(nproc, nproc, "cpu", memory, process_bytes=CPU_BYTES, intra_bandwidth=intra_bandwidth)


def described(
    world_size: int,
    nodes: int,
    device_type: str,
    memory_bytes: int,
    *,
    intra_bandwidth: float | None = None,
    inter_bandwidth: float | None = None,
) -> Cluster:
    """Returns a cluster described by numbers, with what a rank takes before it has a model."""
    process = _cuda_bytes(memory_bytes) if device_type == "cuda" else CPU_BYTES
    per_node = world_size // nodes
    return Cluster(world_size, per_node, device_type, memory_bytes, process, True, intra_bandwidth, inter_bandwidth)


def these_ranks(ranks: Ranks) -> Cluster:
    """Returns the ranks of a running training, each with the least free memory of any. Every rank must call it."""
    free = ranks.gather(available_bytes(ranks.device, ranks.local_world_size))
    known = [number for number in free if number is not None]
    least = min(known) if known else None
    # A CPU rank holds the memory of its libraries already.
    process = _cuda_bytes(least) if ranks.device.type == "cuda" and least is not None else 0
    return Cluster(ranks.world_size, ranks.local_world_size, ranks.device.type, least, process_bytes=process)


def _cuda_bytes(memory: int) -> int:
    """Returns the part of a GPU's memory that is kept free of the model."""
    return CUDA_BYTES + int(_CUDA_SHARE * memory)


def _own_bytes() -> int:
    """Returns the memory of this process that no other shares; 0 if the system does not report it."""
    try:
        lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
