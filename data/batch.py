"""What the model is given: one rank's part of a global batch.

B examples, I dense features, F sparse features.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True)
class Batch:
    """Examples side by side.

    Attributes:
        dense_BI: float32.
        ids: int64, all ids of feature 0 in the order of the examples, then all of feature 1, and so on.
        lengths_FB: int32, ids per feature and example; None stands for exactly one each.
        labels_B: float32, 0 or 1.
        keys: F names.
        num_valid: the first `num_valid` examples count; the rest repeats an example so that shapes are equal.
    """

    dense_BI: Tensor
    ids: Tensor
    lengths_FB: Tensor | None
    labels_B: Tensor
    keys: tuple[str, ...]
    num_valid: int

    def __len__(self) -> int:
        return self.labels_B.numel()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on `device`."""
        return replace(
            self,
            dense_BI=self.dense_BI.to(device, non_blocking=non_blocking),
            ids=self.ids.to(device, non_blocking=non_blocking),
            lengths_FB=None if self.lengths_FB is None else self.lengths_FB.to(device, non_blocking=non_blocking),
            labels_B=self.labels_B.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which copies to a GPU can be asynchronous."""
        return replace(
            self,
            dense_BI=self.dense_BI.pin_memory(),
            ids=self.ids.pin_memory(),
            lengths_FB=None if self.lengths_FB is None else self.lengths_FB.pin_memory(),
            labels_B=self.labels_B.pin_memory(),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory of the batch until `stream` has used it (what TorchRec's pipelines ask of a batch)."""
        for tensor in (self.dense_BI, self.ids, self.lengths_FB, self.labels_B):
            if tensor is not None:
                tensor.record_stream(stream)

    def kjt(self) -> "KeyedJaggedTensor":
        """The ids as TorchRec's KeyedJaggedTensor, sharing memory with `ids`; imports TorchRec when called."""
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        num_examples = len(self)
        if self.lengths_FB is not None:
            return KeyedJaggedTensor(
                keys=list(self.keys), values=self.ids, lengths=self.lengths_FB.reshape(-1), stride=num_examples
            )
        lengths, offsets = _one_each(len(self.keys) * num_examples, self.ids.device)
        return KeyedJaggedTensor(
            keys=list(self.keys), values=self.ids, lengths=lengths, offsets=offsets, stride=num_examples
        )


@lru_cache(maxsize=16)
def _one_each(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """int32 lengths (all 1) and offsets 0..count; the same for every one-hot batch of a size, so made once."""
    return (
        torch.ones(count, dtype=torch.int32, device=device),
        torch.arange(count + 1, dtype=torch.int32, device=device),
    )
