"""A logistic regression with the first-order features of a DLRM, for its first-order weights to start from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.nn import functional

from dlrmctl.assembly.wide import wide_terms
from dlrmctl.baseline.fit import Fitting
from dlrmctl.console.progress import BarDisplay
from dlrmctl.data.source import Source
from dlrmctl.data.store.store import Store
from dlrmctl.datasets.open import open_source, refuse_equal_validation_labels
from dlrmctl.embeddings.first_order import FirstOrder
from dlrmctl.embeddings.wide import BUCKETS
from dlrmctl.errors import UserError
from dlrmctl.models import DLRM
from dlrmctl.models.logistic import BucketLogits, Buckets, LogisticNetwork
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.baseline import BaselineSettings
from dlrmctl.settings.config import Config

_last: dict[Any, "FirstOrderFit | None"] = {}  # by the data and the sparse features


@dataclass(frozen=True)
class FirstOrderFit:
    """A logistic regression with the first-order features of a model.

    Attributes:
        l2: its penalty, the best one on the validation split.
        ne: on the validation split.
        intercept: the logit besides the weights.
        tables: the weights, by the name of their table.
    """

    l2: float
    ne: float | None
    intercept: float
    tables: dict[str, Tensor]

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, Any]) -> None:
        """Copies the weights into this rank's tables: "TABLE/weight" -> tensor, see `sharding.shard.sparse_state`."""
        for name, weights_R in self.tables.items():
            tensor = tensors.get(f"{name}/weight")
            for shard in tensor.local_shards() if isinstance(tensor, ShardedTensor) else ():
                first, rows = shard.metadata.shard_offsets[0], len(shard.tensor)
                shard.tensor[:, 0] = weights_R[first : first + rows].to(shard.tensor)

    def about(self) -> str:
        """One line for people."""
        ne = "" if self.ne is None else f", validation NE {self.ne:.4f}"
        return f"first-order weights start from a logistic regression: l2 {self.l2:.4g}{ne}"


def fit_first_order(config: Config, source: Source, ranks: Ranks, *, shown: bool) -> FirstOrderFit | None:
    """Fits the first-order part of the model on rank 0, and gives it to all. Every rank must call it.

    Features whose ids have weights in several tables are left out. The last fit is kept, for other seeds and for the
    trials of a search.

    Args:
        shown: whether to show the progress.

    Returns:
        None if there is nothing to fit, or nothing to choose a penalty by.
    """
    terms = wide_terms(config, source.features)
    if len(terms.bucketed) < len(source.schema.dense):
        return None  # the data is of an earlier version, without quantiles
    sparse = tuple(f for f in terms.features if f.name not in terms.bucketed and len(f.keys) == 1)
    if not sparse:
        return None
    key = (source.fingerprint(), sparse)
    if key not in _last:
        _last.clear()
        _last[key] = _fitted(FirstOrder(sparse), config, source, ranks, shown=shown)
    return _last[key]


def _fitted(sparse: FirstOrder, config: Config, source: Source, ranks: Ranks, *, shown: bool) -> FirstOrderFit | None:
    alone = ranks.alone()
    dense = BucketLogits(Buckets([column.edges(BUCKETS) for column in source.features.dense]))
    model = DLRM(sparse, network := LogisticNetwork(dense))
    found = ranks.from_main(lambda: _penalty_and_ne(model, config, source, alone, shown=shown))
    if found is None:
        return None
    for parameter in model.parameters():
        ranks.broadcast_tensor(parameter.data)
    by_table = {name: rows[:, 0] for name, rows in sparse.tables().items()}
    l2, ne = found
    return FirstOrderFit(l2, ne, network.intercept.item(), by_table | _by_column(dense, source.schema.dense))


def _penalty_and_ne(
    model: DLRM, config: Config, source: Source, ranks: Ranks, *, shown: bool
) -> tuple[float, float | None] | None:
    """Fits the model for the best L2 penalty on the validation split; None for data that `dlrmctl baseline` refuses."""
    if isinstance(source, Store):
        source = open_source(config.data, verify=())  # what is read here is not of the training
    try:
        refuse_equal_validation_labels(source, "no L2 penalty can be chosen on them", "")
        with BarDisplay(shown=shown) as display:
            best = Fitting(BaselineSettings(), 0, source, model, ranks, display, speaks=False).best()
    except UserError:
        return None
    return best.l2, best.validation.ne


def _by_column(dense: BucketLogits, names: Sequence[str]) -> dict[str, Tensor]:
    """The weights of the buckets of each dense feature, with 0 for those that a feature does not have."""
    end = torch.tensor([dense.buckets.num_columns])
    sizes = dense.buckets.first_I.diff(append=end).tolist()
    padded = [functional.pad(some, (0, 1 + BUCKETS - len(some))) for some in dense.weight_C.detach().split(sizes)]
    return dict(zip(names, padded, strict=True))
