"""The variants of a training step that a benchmark alternates, each with its floor.

The floor is the bare operations that no implementation of the step can omit.

Dimensions: B examples, F vectors of D columns, N = F + 1, R rows of all tables stacked.
"""

from collections.abc import Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrmctl.assembly.model import build_model
from dlrmctl.assembly.optimizers import build_averaging, build_dense_optimizer
from dlrmctl.bench.timing import Laps, Waits, traced_waits
from dlrmctl.data.batch import Batch
from dlrmctl.data.source import Source
from dlrmctl.data.store.store import Store
from dlrmctl.datasets.open import open_reader
from dlrmctl.embeddings.ids import IdCheck
from dlrmctl.embeddings.sharding.fused import kernels
from dlrmctl.embeddings.sharding.shard import Sharded
from dlrmctl.models import DenseNetwork
from dlrmctl.models.interaction import DotInteraction
from dlrmctl.models.mlp import empty_rows
from dlrmctl.optim.shampoo.grafting import graft
from dlrmctl.ranks.group import Ranks
from dlrmctl.ranks.process import set_precision
from dlrmctl.settings.config import Config
from dlrmctl.training.outcomes import Outcomes
from dlrmctl.training.pipeline import Pipeline
from dlrmctl.training.step import TrainingStep

# The step's names of its parts, and those once hooks divide the forward pass.
_PARTS = {"dense forward": "loss", "dense backward": "backward", "table update": "sparse update"}
PARTS = ("products", "interaction", "gather", "scatter")


class Variant:
    """A model in training with its own settings, and its floor.

    Args:
        config: the settings.
        store: the examples.
        table_RD: as for `Floor`, shared by all variants.
        examples: examples of a round, over all ranks; at least two steps are taken.

    Attributes:
        steps: steps of a round.
        floor_parts: milliseconds of the floor's parts in every round so far.
    """

    def __init__(self, config: Config, store: Store, ranks: Ranks, table_RD: torch.Tensor, *, examples: int) -> None:
        self.config, self.ranks = config, ranks
        self.steps = max(2, examples // config.train.batch_size)
        set_precision(config.train.precision)
        self.model = build_model(config, store.features, ranks, batch_size=config.train.batch_size // ranks.world_size)
        self.optimizer = build_dense_optimizer(config.optim, self.model.network, ranks.group)
        self.averaging = build_averaging(config.optim, self.optimizer)
        self.step = TrainingStep(
            self.model,
            self.averaging or self.optimizer,
            ranks,
            config.train.precision,
            late_checks=config.train.late_checks,
        )
        self.batches = endless_batches(store, config, ranks)
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        firsts = torch.tensor([0, *(feature.rows for feature in store.schema.sparse)][:-1]).cumsum(0)
        ids_BF = next(self.batches).ids.view(len(firsts), -1).T
        self.floor = Floor(self.model.network, (ids_BF + firsts).to(ranks.device), table_RD, dtype)
        self.floor_parts: list[dict[str, float]] = []
        self.pipeline = Pipeline(self.batches, self.model, ranks.device, own_stream=config.train.copy_stream)

    def train(self, laps: Laps | None = None, *, steps: int | None = None) -> None:
        """Runs a round of steps, or `steps`, including loading."""
        set_precision(self.config.train.precision)
        for number in range(steps or self.steps):
            if laps:
                laps.start()
            batch = next(self.pipeline)
            if laps:
                laps.end("load")
            self.step(batch, number, meanwhile=self.pipeline.advance)

    def bare(self) -> None:
        """Runs a round of as many floors."""
        set_precision(self.config.train.precision)
        laps = Laps(self.ranks.device)
        for _ in range(self.steps):
            self.floor(laps)
        self.floor_parts.append(laps.take(self.steps))

    def split(self) -> dict[str, float]:
        """Returns milliseconds per step of each part, over a round with marks between them."""
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

    def waits(self, steps: int, file: Path | None = None) -> Waits:
        """Returns what this rank waits for in `steps` steps; writes their trace to `file`."""
        state = [*_tensors([*self.optimizer.state.values()]), *_tensors(self.optimizer.param_groups)]
        state += _tensors(self.averaging.state_dict() if self.averaging else {})
        on_host = [counter for counter in state if counter.dim() == 0]
        for part in self._sharded():
            for kernel, _ in kernels(part.dmp):
                module: Any = kernel.emb_module
                on_host += [module.iter_cpu, module.learning_rate_tensor, module.feature_dims]
        late = [Outcomes.read] if self.config.train.late_checks else []  # reads what a GPU has copied to the host
        return traced_waits(
            partial(self.train, steps=steps),
            self.ranks.device,
            on_host=on_host,
            cpu_only=[IdCheck.__call__, graft, *late],
            file=file,
        )

    def held_bytes(self) -> int:
        """Returns the bytes that this rank holds between two steps: tables, MLPs, the state of both optimizers."""
        parameters = list(self.model.network.parameters())
        state = list(_tensors(self.optimizer.state_dict()["state"]))
        if self.averaging:
            named = dict(self.model.network.named_parameters())
            state += [*self.averaging.averages(named).values(), *self.averaging.tensors(named).values()]
        tables = sum(part.bytes_per_rank[self.ranks.rank] for part in self._sharded())
        return tables + sum(t.nbytes for t in (*parameters, *state))

    def _sharded(self) -> list[Sharded]:
        return [self.model.sharded] if self.model.wide is None else [self.model.sharded, self.model.wide.sharded]

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
    """Yields training batches of one epoch after another; closing it ends the reader's thread."""
    reader = open_reader(config, source, "train", ranks, training=True)
    epoch = 0
    while True:
        yield from reader.batches(epoch)
        epoch += 1


class Floor:
    """Bare matrix products + the interaction's batched products + a row read and a row written per id.

    The floor of a step is the time of these, run alone at the step's shapes and precision, alternated with the step:
    the least time for the arithmetic and the memory traffic that the step must have.

    - products: of every linear layer `x W^T` forward, and backward `g^T x` or its transpose, whichever has longer rows,
      and, but for the first layer, `g W`, in float32 into rows that fill cache lines;
    - interaction: with "dot", `V V^T` forward and one product of its size with V backward; with others, nothing;
    - gather and scatter: one row of D float32 for every id of a real batch, from full tables and back into them,
      whatever tables the variant has.

    Biases, activations, loss, the check, the optimizers' arithmetic, reading the batch and communication are not
    counted.

    Args:
        network: its layers determine the shapes.
        rows_BF: rows of the stacked tables, for every example and feature.
        table_RD: the stacked tables; rows are written back as they were read.
        dtype: type of the operands of products, bfloat16 under autocast.
    """

    def __init__(self, network: DenseNetwork, rows_BF: Tensor, table_RD: Tensor, dtype: torch.dtype) -> None:
        self.table_RD = table_RD
        self.rows = rows_BF.flatten()
        self.taken_ND = table_RD[self.rows]
        batch, device = len(rows_BF), table_RD.device
        self.operands: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                shapes = (batch, layer.in_features), layer.weight.shape, (batch, layer.out_features)
                x, weight, grad = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
                x_grad = torch.empty_like(x)
                if dtype == torch.float32:
                    x_grad = empty_rows(x, batch, layer.in_features)
                self.operands.append((x, weight, grad, x_grad))
        self.vectors_BND: Tensor | None = None
        self.flop = _flop(self.operands)
        if isinstance(network.interaction, DotInteraction):
            N = network.num_vectors + 1
            self.vectors_BND = torch.randn(batch, N, table_RD.shape[1], device=device).to(dtype)
            self.dots_BNN = torch.randn(batch, N, N, device=device).to(dtype)

    def __call__(self, laps: Laps) -> None:
        """Runs it once, and marks the parts in `laps`."""
        laps.start()
        for i, (x, weight, grad, x_grad) in enumerate(self.operands):
            x @ weight.T
            x.T @ grad if x.shape[1] < grad.shape[1] else grad.T @ x
            if i > 0:  # the gradient of the dense features is not needed
                torch.mm(grad, weight, out=x_grad)
        laps.end("products")
        if self.vectors_BND is not None:
            torch.bmm(self.vectors_BND, self.vectors_BND.transpose(1, 2))
            torch.bmm(self.dots_BNN, self.vectors_BND)
        laps.end("interaction")
        torch.index_select(self.table_RD, 0, self.rows, out=self.taken_ND)
        laps.end("gather")
        self.table_RD.index_copy_(0, self.rows, self.taken_ND)
        laps.end("scatter")


def _flop(operands: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> int:
    """Returns the multiplications and additions of the linear layers."""
    sizes = [2 * len(x) * weight.numel() for x, weight, *_ in operands]
    return 3 * sum(sizes) - sizes[0]
