"""The interface of the sources of a reader: a store on disk, or a generator.

N examples of a block, I dense features, F sparse features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.schema import Schema

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Block:
    """Consecutive examples of one split, feature-major.

    Attributes:
        dense_IN: floating point, NaN where missing.
        ids_F: F integer arrays of N ids each, or of as many as the sum of the feature's lengths.
        labels_N: 0 or 1, any number type.
        lengths_FN: ids per feature and example, or None for exactly one each.
        weights_N: float32, at least 0; None if all examples count 1.
        groups_N: uint64, see `schema.NO_GROUP`; None without groups.
        id_weights_F: for each feature float32, the weight of each id, or None if all are 1; None if no feature has any.
            See `pooled_weights`; those of a block that is written are not divided yet.
    """

    dense_IN: np.ndarray
    ids_F: Sequence[np.ndarray]
    labels_N: np.ndarray
    lengths_FN: np.ndarray | None = None
    weights_N: np.ndarray | None = None
    groups_N: np.ndarray | None = None
    id_weights_F: Sequence[np.ndarray | None] | None = None

    def __len__(self) -> int:
        return len(self.labels_N)


def pooled_weights(
    schema: Schema, weights_F: Sequence[np.ndarray | None], lengths_FN: np.ndarray | None
) -> list[np.ndarray | None] | None:
    """Returns the weights of ids: the given ones, divided by the number of ids where the pooling is a mean."""
    if not any(feature.weighted for feature in schema.sparse):
        return None
    assert lengths_FN is not None
    found: list[np.ndarray | None] = []
    for feature, weights, lengths_N in zip(schema.sparse, weights_F, lengths_FN, strict=True):
        if feature.pooling == "mean":
            shares = np.repeat((1 / np.maximum(lengths_N, 1)).astype(np.float32), lengths_N)
            weights = shares if weights is None else weights * shares
        found.append(weights)
    return found


@dataclass(frozen=True)
class Bayes:
    """Scores of the best possible model on a split: the true probabilities against the drawn labels.

    Attributes:
        log_loss: mean, in nats.
        ne: `log_loss` over the entropy of the split's own label rate.
        auc: exact, ties counted half.
    """

    log_loss: float
    ne: float
    auc: float


class Source(Protocol):
    """Blocks by split and index. Block i has the examples [i * block_rows, (i + 1) * block_rows) of its split."""

    @property
    def schema(self) -> Schema: ...

    @property
    def block_rows(self) -> int: ...

    @property
    def features(self) -> FeatureSpace:
        """How raw rows become examples like these, and what is known about the ids."""
        ...

    def num_examples(self, split: str) -> int:
        """The number of examples of the split."""
        ...

    def read_block(self, split: str, index: int) -> Block:
        """One block; safe to call from several threads."""
        ...

    def fingerprint(self) -> str:
        """Identifies the data; a checkpoint stores it, so that a position is not applied to other data."""
        ...

    def vocabulary_fingerprint(self) -> str:
        """Identifies the meaning of ids; a model can score other data if it is equal."""
        ...

    def bayes(self, split: str) -> Bayes | None:
        """Scores of the best possible model on the split; None if unknown."""
        ...


@runtime_checkable
class Expecting(Protocol):
    """A source that can fetch blocks before they are read."""

    def expect(self, split: str, indices: Sequence[int]) -> None:
        """Says which blocks of a split are read next, and in which order; earlier ones that were not read are dropped.

        Does not wait, and raises no errors of blocks.
        """
        ...


def check_split(split: str) -> None:
    """Checks that there is a split of this name.

    Raises:
        DataError: if `split` is none of `SPLITS`.
    """
    if split not in SPLITS:
        raise DataError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
