"""Estimates the time of a step from its arithmetic, memory traffic and communication at the rates of the slowest rank.

The parts are added up. Overlap, waiting, the losses of small kernels and reading data are not included: use it for the
order of magnitude, and for what bounds a step. The rates of products, copies and gathers are measured within a second,
or given.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dlrmctl.embeddings.sharding.placement import CPU_BYTES_PER_SECOND
from dlrmctl.plan.cluster import Cluster
from dlrmctl.plan.dense import RUN, SHORT_RUN, DenseNeed
from dlrmctl.plan.memory import Exchange, MemoryPlan, activation_floats
from dlrmctl.ranks.cores import usable_cores
from dlrmctl.ranks.process import matmul_precision, num_threads
from dlrmctl.settings.config import Config
from dlrmctl.settings.exchange import bytes_share, dense_ratio

_FLOAT = 4
_PASSES = 6  # passes over activations: written and read forward; read, with a gradient written and read twice, backward
_ELEMENTWISE = {
    "adagrad": 8,
    "adamw": 9,
    "sgd": 3,
    "signum": 8,
    "muon": 20,
    "shampoo": 0,
}  # reads and writes of each weight; not of Shampoo
_AVERAGING = 6  # the average and its iterate are read and written, then the weights
_SECONDS = 0.25  # for each of the three
_COPIED_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}  # more than caches hold
_GATHERED_ROWS = 200_000
_WIDEST, _MOST_EXAMPLES = 4096, 8192  # larger products are no faster


@dataclass(frozen=True)
class StepTime:
    """Seconds by part; None if a rate is unknown. `bound_by` is the longest part.

    Attributes:
        early_optimizer: seconds of the optimizer in the first 200 steps; its part is the mean of the first 1,000.
    """

    parts: dict[str, float | None]
    early_optimizer: float | None

    @property
    def total(self) -> float | None:
        known = [seconds for seconds in self.parts.values() if seconds is not None]
        return sum(known) if len(known) == len(self.parts) else None

    @property
    def optimizer_shares(self) -> dict[int, float] | None:
        """The optimizer's time relative to the rest of a step, by the number of first steps in the mean."""
        optimizer, early = self.parts["optimizer"], self.early_optimizer
        if self.total is None or optimizer is None or early is None:
            return None
        rest = self.total - optimizer
        return {RUN: optimizer / rest, SHORT_RUN: early / rest}

    @property
    def bound_by(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name] or 0.0)


@dataclass(frozen=True)
class Rate:
    """A number per second, and its origin: "measured", "given" or "assumed"."""

    value: float
    source: str


@dataclass(frozen=True)
class Rates:
    """Rates of one rank; None if unknown.

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


def estimate(config: Config, plan: MemoryPlan, rates: Rates) -> StepTime:
    """Estimates a step, taking the slowest rank for each part."""
    dense, size = plan.dense, plan.cluster.world_size
    batch = config.train.batch_size // size
    N, D = plan.embeddings.num_vectors + 1, config.embeddings.dim
    interaction = N * N * D if config.model.interaction == "dot" else 0
    flop = 2 * 3 * batch * (dense.products + interaction)  # forward, and the gradients of both factors
    activations = batch * activation_floats(config, N - 1) * _FLOAT * _PASSES
    averaging = 0 if config.optim.averaging == "none" else _AVERAGING
    elementwise = (_ELEMENTWISE[config.optim.dense_optimizer] + averaging) * dense.weights
    both = list(zip(plan.exchanges, plan.wide_exchanges, strict=True))
    gathered = max(_gathered(vectors) + _gathered(scalars) for vectors, scalars in both)
    optimizer, early = (
        _sum(_over(2 * max(products), rates.flops), _over(elementwise, rates.memory))
        for products in (dense.optimizer_products, dense.early_products)
    )
    parts = {
        "MLPs": _over(flop, rates.flops),
        "activations": _over(activations, rates.memory),
        "lookups": _over(gathered, rates.gather),
        "optimizer": optimizer,
    }
    if size > 1:
        # A ring sends gradients of the MLPs twice; directions of other ranks.
        share = bytes_share(config.train.compress_a2a, D)
        tables = max(_exchanged(vectors, share) + _exchanged(scalars, 1.0) for vectors, scalars in both)
        others = (size - 1) / size
        parts["exchange of tables"] = _sent(tables, plan, rates)
        ratio = dense_ratio(config.train.compress_dense)
        # Of the numbers that are kept, every rank gets those of all others, each with its place.
        gradients = 2 * dense.gradients if ratio is None else 2 * dense.gradients / ratio * size
        parts["exchange of MLPs"] = _sent((gradients + dense.exchanged) * others, plan, rates)
    return StepTime(parts, early)


def _gathered(one: Exchange) -> float:
    """Bytes of rows that are read for a lookup, and read and written in the update."""
    return 3 * one.row_bytes + one.looked_up / 2


def _exchanged(one: Exchange, share: float) -> float:
    """Bytes of ids out, sums back and gradients out; `share` of those of sums and gradients with a codec."""
    return max(one.sent, one.received / 2) * 2 * share + one.sent_ids


def _sent(num_bytes: float, plan: MemoryPlan, rates: Rates) -> float | None:
    """Returns the seconds over both networks at once: traffic to ranks on other nodes uses the slower one."""
    cluster = plan.cluster
    outside = (cluster.world_size - cluster.ranks_per_node) / (cluster.world_size - 1)
    ways = [_over(num_bytes * (1 - outside), rates.intra) if outside < 1 else 0.0]
    ways += [_over(num_bytes * outside, rates.inter) if outside > 0 else 0.0]
    known = [seconds for seconds in ways if seconds is not None]
    return max(known) if len(known) == len(ways) else None


def _over(amount: float, rate: object) -> float | None:
    value = getattr(rate, "value", None)
    return None if value is None else amount / value


def _sum(*seconds: float | None) -> float | None:
    known = [number for number in seconds if number is not None]
    return sum(known) if len(known) == len(seconds) else None


def find_rates(
    cluster: Cluster,
    dense: DenseNeed,
    *,
    dim: int,
    batch: int,
    precision: str,
    flops: float | None,
    memory: float | None,
) -> Rates:
    """Returns the given rates, and measures the others if these ranks are on this machine."""
    here = not cluster.described
    missing = here and (flops is None or memory is None)
    measured = measure(cluster, dense, dim=dim, batch=batch, precision=precision) if missing else {}
    given_memory = None if memory is None else Rate(memory, "given")
    return Rates(
        flops=Rate(flops, "given") if flops is not None else measured.get("flops"),
        memory=given_memory or measured.get("memory"),
        # Rows of an embedding are long enough that a GPU reads them at nearly full bandwidth.
        gather=given_memory or measured.get("gather"),
        intra=_bandwidth(cluster.intra_bandwidth, here and cluster.device_type == "cpu"),
        inter=_bandwidth(cluster.inter_bandwidth, False),
    )


def _bandwidth(given: float | None, local: bool) -> Rate | None:
    if given is not None:
        return Rate(given, "given")
    return Rate(CPU_BYTES_PER_SECOND, "assumed") if local else None


def measure(cluster: Cluster, dense: DenseNeed, *, dim: int, batch: int, precision: str) -> dict[str, Rate]:
    """Measures a product of the shape of the largest layer, a copy, and rows of a table gathered at random.

    It uses the threads that each rank would have; if there are more ranks than cores, they share them.
    """
    device = torch.device(cluster.device_type)
    outputs, inputs = (min(width, _WIDEST) for width in dense.largest_layer)
    examples, dim = min(batch, _MOST_EXAMPLES), min(dim, _WIDEST)
    factor = torch.bfloat16 if precision == "bf16" else torch.float32
    x_BI, weight_OI = (torch.randn(rows, inputs, device=device).to(factor) for rows in (examples, outputs))
    copied = _COPIED_BYTES[device.type]
    source, target = (torch.zeros(copied // 4, device=device) for _ in range(2))
    table_RD = torch.zeros(copied * 4 // (4 * dim), dim, device=device)
    table_RD.fill_(1.0)  # pages that were never written are all the same page
    num_rows = min(_GATHERED_ROWS, len(table_RD))
    rows = torch.randint(0, len(table_RD), (num_rows,), device=device)
    per_call = {
        "flops": (2.0 * examples * inputs * outputs, lambda: x_BI @ weight_OI.T),
        "memory": (2.0 * copied, lambda: target.copy_(source)),
        "gather": (4.0 * num_rows * dim, lambda: table_RD.index_select(0, rows)),
    }
    cores = usable_cores()
    turns = max(1.0, cluster.world_size / cores) if device.type == "cpu" else 1.0
    threads = max(1, min(torch.get_num_threads(), cores // cluster.world_size))
    with matmul_precision(precision), num_threads(threads):
        return {name: Rate(_per_second(*work, device) / turns, "measured") for name, work in per_call.items()}


def _per_second(amount: float, work: Callable[[], object], device: torch.device) -> float:
    work()
    calls, passed = 1, 0.0
    while True:
        started = _now(device)
        for _ in range(calls):  # a wait after each call would take longer than the call
            work()
        passed = _now(device) - started
        if passed >= _SECONDS / 2:
            return amount * calls / passed
        calls = max(2 * calls, min(int(_SECONDS * calls / max(passed, 1e-9)), 100 * calls))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
