"""`dlrmctl bench step`: the training step against the bare matrix products it contains, loading included.

The reference shapes are those of the Criteo Kaggle data: 13 dense features, 26 tables. Examples are made up with ids
that follow a power law, written to a store, and read as training reads them.
"""

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.batch import Batch
from data.source import Source
from data.store import Store
from data.synthetic import MAX_CARDINALITY, Synthetic
from data.synthetic_sizes import KAGGLE
from data.writer import write_store
from dlrmctl.bench.timing import Laps, alternate, spread
from dlrmctl.build import build_dense_optimizer, build_model
from dlrmctl.config import Config
from dlrmctl.console import output, print_table, say
from dlrmctl.datasets import open_reader
from dlrmctl.evaluate import set_precision
from dlrmctl.ranks import Ranks
from dlrmctl.step import TrainingStep

WARMUP_STEPS = 10


def bench_step(config: Config, ranks: Ranks, *, rounds: int, steps: int, rows_cap: int) -> dict[str, Any]:
    """Times rounds of training steps, each after a round of the bare products.

    Args:
        rounds: medians are over these.
        steps: per round.
        rows_cap: larger tables are cut to this many rows.

    Returns:
        Plain values: milliseconds (median, fastest, slowest round), ratios, GFLOP/s, examples/s, parts of the step.
    """
    set_precision(config.train.precision)
    size = config.train.batch_size
    cardinalities = [min(rows, rows_cap, MAX_CARDINALITY) for rows in KAGGLE]
    with tempfile.TemporaryDirectory(prefix="dlrmctl-bench-") as scratch:
        say(f"writing {size * (steps + WARMUP_STEPS):,} examples")
        source = Synthetic(0, size * (steps + WARMUP_STEPS), size, size, cardinalities=cardinalities)
        write_store(source, Path(scratch) / "store")
        store = Store(Path(scratch) / "store")
        model = build_model(config, store.schema, ranks, batch_size=size // ranks.world_size)
        laps = Laps(ranks.device)
        optimizer = build_dense_optimizer(config.optim, model.network, ranks)
        step = TrainingStep(model, optimizer, ranks, config.train.precision, lap=laps.end)
        products = BareProducts(model.network, size // ranks.world_size, ranks.device)
        batches = endless_batches(store, config, ranks)
        for number in range(WARMUP_STEPS):
            step(next(batches).to(ranks.device), number, stop=False)
            products()
        laps.clear()

        def train() -> None:
            for number in range(steps):
                laps.start()
                batch = next(batches).to(ranks.device, non_blocking=True)
                laps.end("load")
                step(batch, number, stop=False)

        def multiply() -> None:
            for _ in range(steps):
                products()

        seconds = alternate({"products": multiply, "step": train}, rounds=rounds, device=ranks.device, warmup=0)
        step_ms, products_ms = ([t * 1e3 / steps for t in seconds[name]] for name in ("step", "products"))
    parts = laps.milliseconds(rounds * steps)
    median, bare = statistics.median(step_ms), statistics.median(products_ms)
    return {
        "examples_per_second": size * 1e3 / median,
        "step_ms": spread(step_ms),
        "bare_products_ms": spread(products_ms),
        "bare_products_gflops": products.flop / bare / 1e6,
        "ratio": spread([a / b for a, b in zip(step_ms, products_ms, strict=True)]),
        "load_share": parts["load"] / sum(parts.values()),
        "parts_ms": parts,
        "threads": torch.get_num_threads(),
        "ranks": ranks.world_size,
        "device": ranks.device.type,
        "batch_size": size,
        "rows": sum(f.rows for f in store.schema.sparse),
        "settings": config.to_dict(),
    }


class BareProducts:
    """The matrix products of the MLPs alone: forward, weight gradients, and input gradients where they are needed.

    Args:
        network: whose linear layers set the shapes.
        batch: examples.
    """

    def __init__(self, network: torch.nn.Module, batch: int, device: torch.device) -> None:
        self.operands: list[tuple[Tensor, Tensor, Tensor]] = []
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                x = torch.randn(batch, layer.in_features, device=device)
                grad = torch.randn(batch, layer.out_features, device=device)
                self.operands.append((x, torch.randn_like(layer.weight), grad))
        sizes = [2 * batch * weight.numel() for _, weight, _ in self.operands]
        self.flop = 3 * sum(sizes) - sizes[0]  # nobody needs the gradient of the dense features

    def __call__(self) -> None:
        for i, (x, weight, grad) in enumerate(self.operands):
            x @ weight.T
            grad.T @ x
            if i > 0:
                grad @ weight


def show_bench_step(result: dict[str, Any]) -> None:
    """The result for people."""
    step, bare, ratio = result["step_ms"], result["bare_products_ms"], result["ratio"]
    output.print(
        f"batch {result['batch_size']:,}, {result['rows']:,} rows, {result['ranks']} x {result['device']}, "
        f"{result['threads']} threads"
    )
    output.print(
        f"{result['examples_per_second']:,.0f} examples/s; the step takes {ratio['median']:.2f} times its bare matrix "
        f"products ({result['bare_products_gflops']:.0f} GFLOP/s), loading included"
    )
    print_table(
        "milliseconds per step",
        ["", "median", "fastest", "slowest"],
        [
            [name, *(f"{spread[key]:.2f}" for key in ("median", "fastest", "slowest"))]
            for name, spread in (("whole step", step), ("bare products", bare), ("ratio", ratio))
        ],
    )
    total = sum(result["parts_ms"].values())
    print_table(
        "parts of the step, mean",
        ["", "ms", "share"],
        [[part, f"{ms:.2f}", f"{100 * ms / total:.1f} %"] for part, ms in result["parts_ms"].items()],
    )


def endless_batches(source: Source, config: Config, ranks: Ranks) -> Iterator[Batch]:
    """Training batches of one epoch after another."""
    reader = open_reader(config, source, "train", ranks, training=True)
    epoch = 0
    while True:
        yield from reader.batches(epoch)
        epoch += 1
