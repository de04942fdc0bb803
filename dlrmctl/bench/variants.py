"""The variants of a training step that a benchmark alternates: settings, model, batches and floor of each."""

from collections.abc import Generator, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from data.batch import Batch
from data.source import Source
from data.store import Store
from dlrmctl.bench.floor import Floor
from dlrmctl.bench.timing import Laps
from dlrmctl.build import build_dense_optimizer, build_model
from dlrmctl.config import Config
from dlrmctl.datasets import open_reader
from dlrmctl.evaluate import set_precision
from dlrmctl.ranks import Ranks
from dlrmctl.step import TrainingStep

# What the step calls its parts, and what they are once the forward pass is cut by hooks.
_PARTS = {"dense forward": "loss", "dense backward": "backward", "table update": "sparse update"}


class Variant:
    """A model in training with settings of its own, and its floor.

    Args:
        config: the settings.
        store: of the examples.
        table_RD: as for `Floor`, shared by all variants.
        examples: of a round, over all ranks; at least two steps are taken.

    Attributes:
        steps: of a round.
        floor_parts: milliseconds of the floor's parts, of every round so far.
    """

    def __init__(self, config: Config, store: Store, ranks: Ranks, table_RD: torch.Tensor, *, examples: int) -> None:
        self.config, self.ranks = config, ranks
        self.steps = max(2, examples // config.train.batch_size)
        set_precision(config.train.precision)
        self.model = build_model(config, store.schema, ranks, batch_size=config.train.batch_size // ranks.world_size)
        self.optimizer = build_dense_optimizer(config.optim, self.model.network, ranks)
        self.step = TrainingStep(self.model, self.optimizer, ranks, config.train.precision)
        self.batches = endless_batches(store, config, ranks)
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        firsts = torch.tensor([0, *(feature.rows for feature in store.schema.sparse)][:-1]).cumsum(0)
        ids_BF = next(self.batches).ids.view(len(firsts), -1).T
        self.floor = Floor(self.model.network, (ids_BF + firsts).to(ranks.device), table_RD, dtype)
        self.floor_parts: list[dict[str, float]] = []

    def train(self, laps: Laps | None = None, *, steps: int | None = None) -> None:
        """A round of steps, or so many, loading included."""
        set_precision(self.config.train.precision)
        for number in range(steps or self.steps):
            if laps:
                laps.start()
            batch = next(self.batches).to(self.ranks.device, non_blocking=True)
            if laps:
                laps.end("load")
            self.step(batch, number, stop=False)

    def bare(self) -> None:
        """A round of as many floors."""
        set_precision(self.config.train.precision)
        laps = Laps(self.ranks.device)
        for _ in range(self.steps):
            self.floor(laps)
        self.floor_parts.append(laps.take(self.steps))

    def split(self) -> dict[str, float]:
        """Milliseconds per step of each part, over a round with marks between them."""
        network, laps = self.model.network, Laps(self.ranks.device)
        hooks = []
        for part, module in {"bottom": network.bottom, "interaction": network.interaction, "top": network.top}.items():
            hooks.append(module.register_forward_hook(partial(_end, laps, part)))
        unmarked = self.step.lap
        self.step.lap = lambda part: laps.end(_PARTS.get(part, part))
        try:
            self.train(laps)
        finally:
            self.step.lap = unmarked
            for hook in hooks:
                hook.remove()
        return laps.take(self.steps)

    def held_bytes(self) -> int:
        """Of this rank between two steps: tables, MLPs, the state of both optimizers."""
        parameters = list(self.model.network.parameters())
        state = list(_tensors(self.optimizer.state_dict()["state"]))
        return self.model.sharded.bytes_per_rank[self.ranks.rank] + sum(t.nbytes for t in (*parameters, *state))

    def close(self) -> None:
        """Ends the reader's thread."""
        self.batches.close()


def _end(laps: Laps, part: str, *called: Any) -> None:
    laps.end(part)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping | list | tuple):
        for item in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _tensors(item)


def endless_batches(source: Source, config: Config, ranks: Ranks) -> Generator[Batch, None, None]:
    """Training batches of one epoch after another; closing it ends the reader's thread."""
    reader = open_reader(config, source, "train", ranks, training=True)
    epoch = 0
    while True:
        yield from reader.batches(epoch)
        epoch += 1
