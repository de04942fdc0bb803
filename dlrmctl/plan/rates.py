"""How fast a rank multiplies, copies and gathers: measured here within a second, or given."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dlrmctl.plan.cluster import Cluster
from dlrmctl.plan.dense import DenseNeed
from embeddings.placement import CPU_BYTES_PER_SECOND

_SECONDS = 0.25  # for each of the three
_COPIED_BYTES = 64 * 2**20
_GATHERED_ROWS = 200_000
_WIDEST, _MOST_EXAMPLES = 4096, 8192  # larger products are no faster


@dataclass(frozen=True)
class Rate:
    """A number per second, and where it is from: "measured", "given" or "assumed"."""

    value: float
    source: str


@dataclass(frozen=True)
class Rates:
    """Of one rank; None where not known.

    Attributes:
        flops: floating point operations of matrix products.
        memory: bytes read and written in order.
        gather: bytes of rows read at random.
        intra, inter: bytes to ranks of the same node, and of others.
    """

    flops: Rate | None
    memory: Rate | None
    gather: Rate | None
    intra: Rate | None
    inter: Rate | None


def find_rates(
    cluster: Cluster, dense: DenseNeed, *, dim: int, batch: int, flops: float | None, memory: float | None
) -> Rates:
    """What is given as given, the rest as measured if these ranks are here."""
    here = not cluster.described
    measured = measure(cluster, dense, dim=dim, batch=batch) if here and (flops is None or memory is None) else {}
    given_memory = None if memory is None else Rate(memory, "given")
    return Rates(
        flops=Rate(flops, "given") if flops is not None else measured.get("flops"),
        memory=given_memory or measured.get("memory"),
        # Rows of an embedding are long enough that a GPU reads them about as fast as anything.
        gather=given_memory or measured.get("gather"),
        intra=_bandwidth(cluster.intra_bandwidth, here and cluster.device_type == "cpu"),
        inter=_bandwidth(cluster.inter_bandwidth, False),
    )


def _bandwidth(given: float | None, local: bool) -> Rate | None:
    if given is not None:
        return Rate(given, "given")
    return Rate(CPU_BYTES_PER_SECOND, "assumed") if local else None


def measure(cluster: Cluster, dense: DenseNeed, *, dim: int, batch: int) -> dict[str, Rate]:
    """A product of the shape of the largest layer, a copy, and rows of a table gathered at random.

    With the threads that each of the ranks would have; where there are more ranks than cores, they take turns.
    """
    device = torch.device(cluster.device_type)
    outputs, inputs = (min(width, _WIDEST) for width in dense.largest_layer)
    examples, dim = min(batch, _MOST_EXAMPLES), min(dim, _WIDEST)
    x_BI, weight_OI = torch.randn(examples, inputs, device=device), torch.randn(outputs, inputs, device=device)
    source, target = (torch.zeros(_COPIED_BYTES // 4, device=device) for _ in range(2))
    table_RD = torch.zeros(_COPIED_BYTES * 4 // (4 * dim), dim, device=device)
    table_RD.fill_(1.0)  # pages that nobody wrote are all the same one
    num_rows = min(_GATHERED_ROWS, len(table_RD))
    rows = torch.randint(0, len(table_RD), (num_rows,), device=device)
    per_call = {
        "flops": (2.0 * examples * inputs * outputs, lambda: x_BI @ weight_OI.T),
        "memory": (2.0 * _COPIED_BYTES, lambda: target.copy_(source)),
        "gather": (4.0 * num_rows * dim, lambda: table_RD.index_select(0, rows)),
    }
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    torch.set_num_threads(max(1, min(threads, cores // cluster.world_size)))
    turns = max(1.0, cluster.world_size / cores) if device.type == "cpu" else 1.0
    try:
        return {name: Rate(_per_second(*work, device) / turns, "measured") for name, work in per_call.items()}
    finally:
        torch.set_num_threads(threads)


def _per_second(amount: float, work: Callable[[], object], device: torch.device) -> float:
    work()
    calls, started = 0, _now(device)
    while (passed := _now(device) - started) < _SECONDS:
        work()
        calls += 1
    return amount * calls / passed


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
