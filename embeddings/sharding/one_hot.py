"""Sends the rows of one-hot batches, and nothing that the other ranks know.

TorchRec first exchanges how many rows each rank gets, which makes a GPU wait, then the length of each bag, then the
rows. If every bag has one row, and every rank as many examples, the rows are enough.

Dimensions: W ranks, B examples of each, K keys of this rank's tables.
"""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.dist_data import KJTAllToAll, KJTAllToAllTensorsAwaitable
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.sharding.tw_sharding import TwSparseFeaturesDist
from torchrec.distributed.types import Awaitable, NoWait
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrmctl.embeddings.ids import one_each


class OneHotAllToAll(KJTAllToAll):
    """Sends the rows of whole tables to the ranks that hold them, in one message if all bags have one row.

    Attributes:
        one_hot: whether they have, in the next batch, on all ranks.
    """

    def __init__(self, replaced: KJTAllToAll) -> None:
        super().__init__(replaced._pg, replaced._splits, replaced._stagger)
        self.one_hot = False

    def forward(self, input: KeyedJaggedTensor) -> Awaitable[KJTAllToAllTensorsAwaitable]:
        return NoWait(_OneHotRows(self._pg, self._splits, input)) if self.one_hot else super().forward(input)


class _OneHotRows(KJTAllToAllTensorsAwaitable):
    """The rows under way; the names of the attributes are TorchRec's, which reads them."""

    def __init__(self, group: dist.ProcessGroup, splits: Sequence[int], mine: KeyedJaggedTensor) -> None:
        Awaitable.__init__(self)
        self._batch_size, first = mine.stride(), sum(splits[: group.rank()])
        self._keys = mine.keys()[first : first + splits[group.rank()]]
        sent = [count * self._batch_size for count in splits]
        received = [len(self._keys) * self._batch_size] * group.size()
        self._input_splits, self._output_splits = {"values": sent}, {"values": received}
        self._stride_per_rank = [self._batch_size] * group.size()
        self._recat = None
        self._sent = [part for part in (mine.values(), mine.weights_or_none()) if part is not None]  # until received
        self._parts = [part.new_empty(sum(received)) for part in self._sent]
        self._works = [
            dist.all_to_all_single(part, own, received, sent, group=group, async_op=True)
            for part, own in zip(self._parts, self._sent, strict=True)
        ]

    def _wait_impl(self) -> KeyedJaggedTensor:
        for work in self._works:
            work.wait()
        values, *weights = [self._by_key(part_WKB) for part_WKB in self._parts]
        examples = sum(self._stride_per_rank)
        lengths, offsets = one_each(len(values), values.device)
        return KeyedJaggedTensor(
            self._keys,
            values,
            weights=weights[0] if weights else None,
            lengths=lengths,
            offsets=offsets,
            stride=examples,
            length_per_key=[examples] * len(self._keys),
        )

    def _by_key(self, part_WKB: Tensor) -> Tensor:
        world_size = len(self._stride_per_rank)
        return part_WKB.view(world_size, len(self._keys), self._batch_size).transpose(0, 1).reshape(-1)


def send_one_hot_in_one(collection: ShardedEmbeddingBagCollection, keys: Sequence[str]) -> list[OneHotAllToAll]:
    """Lets a collection send rows of its whole tables by `OneHotAllToAll`, and returns these.

    Args:
        keys: those of all batches, in their order.
    """
    collection._create_input_dist(list(keys))  # TorchRec does it with the first batch
    collection._has_uninitialized_input_dist = False
    replaced = []
    for input_dist in collection._input_dists:
        if isinstance(input_dist, TwSparseFeaturesDist):
            input_dist._dist = OneHotAllToAll(input_dist._dist)
            replaced.append(input_dist._dist)
    return replaced
