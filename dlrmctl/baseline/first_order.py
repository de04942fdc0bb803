"""A logistic regression with the first-order features of a DLRM, for the weights of its ids to start from.

Buckets of dense features are fitted beside them, but start at 0: for a network that sees the numbers themselves, their
steps are harder to improve on than no weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

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
        intercept: the logit besides the weights of ids, with the mean of what dense features add.
        tables: the weights of ids, by the name of their table.
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
    l2, ne, of_buckets = found
    by_table = {name: rows[:, 0] for name, rows in sparse.tables().items()}
    return FirstOrderFit(l2, ne, network.intercept.item() + of_buckets, by_table)


def _penalty_and_ne(
    model: DLRM, config: Config, source: Source, ranks: Ranks, *, shown: bool
) -> tuple[float, float | None, float] | None:
    """Fits the model for the best L2 penalty on the validation split; None for data that `dlrmctl baseline` refuses.

    Returns:
        The penalty, its NE, and the mean of what the buckets of dense features add.
    """
    if isinstance(source, Store):
        source = open_source(config.data, verify=())  # what is read here is not of the training
    try:
        refuse_equal_validation_labels(source, "no L2 penalty can be chosen on them", "")
        with BarDisplay(shown=shown) as display:
            fitting = Fitting(BaselineSettings(), 0, source, model, ranks, display, speaks=False)
            best = fitting.best()
    except UserError:
        return None
    return best.l2, best.validation.ne, fitting.mean_of_buckets()
