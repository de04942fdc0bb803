"""Lets some ids of training batches count as rare, so that the row of rare ids is trained."""

import zlib

import torch
from torch import Tensor

from dlrmctl.data.batch import Batch
from dlrmctl.data.preparation.report import PrepareReport
from dlrmctl.data.schema import MISSING_ROW, RARE_ROW
from dlrmctl.data.source import Source
from dlrmctl.data.store.store import Store
from dlrmctl.ranks.group import Ranks

_FEWEST_ROWS = 100  # a feature of fewer values, such as a weekday, hardly gets new ones


class IdDropout:
    """Gives ids the row of rare values in a share of the training examples, drawn anew in every step.

    A value that is new in later data has this row. Where each training value has a row of its own, as with users who
    all return, nothing else would train it, and new users would get the vector that it happened to start with.

    What is drawn follows from the seed and the step, for any number of ranks.

    Args:
        source: of the training; only features with a vocabulary have a row for rare values. Those of few values, which
            hardly get new ones, are left alone.
        rate: the share of examples in which an id is to be rare. A feature whose training ids are rare in a share of
            their own needs only the rest.
    """

    def __init__(self, source: Source, rate: float, seed: int, ranks: Ranks) -> None:
        rare = _rare_shares(source)
        known = source.features.sorted_by_frequency
        rates = [
            max(0.0, rate - rare.get(feature.name, 0.0))
            if known(feature.name) and feature.rows >= _FEWEST_ROWS
            else 0.0
            for feature in source.schema.sparse
        ]
        # Places are drawn with replacement: of a mean of h hits, a share of 1 - exp(-h) of the places has one.
        self._hits_F = -torch.tensor(rates, dtype=torch.float64).neg().log1p()
        self._seed, self._ranks = seed, ranks

    def __call__(self, batch: Batch, step: int) -> None:
        """Changes the ids of a batch in main memory in place; missing ones stay."""
        most = float(self._hits_F.max()) if len(self._hits_F) else 0.0
        if not most:
            return
        B, F = len(batch), len(self._hits_F)
        draw = torch.Generator().manual_seed(zlib.crc32(f"ids:{self._seed}:{step}".encode()))
        expected = F * B * self._ranks.world_size * most
        number = int(expected + torch.rand((), generator=draw, dtype=torch.float64))
        features_K = torch.randint(F, (number,), generator=draw)
        examples_K = torch.randint(B * self._ranks.world_size, (number,), generator=draw) - B * self._ranks.rank
        chosen_K = torch.rand(number, generator=draw, dtype=torch.float64) * most < self._hits_F[features_K]
        chosen_K &= (examples_K >= 0) & (examples_K < B)
        places = _places(batch, features_K[chosen_K] * B + examples_K[chosen_K])
        batch.ids[places[batch.ids[places] != MISSING_ROW]] = RARE_ROW


def _places(batch: Batch, bags_K: Tensor) -> Tensor:
    """Returns where in `batch.ids` the ids of some bags are; a bag is the ids of a feature and an example."""
    if batch.lengths_FB is None:
        return bags_K
    lengths = batch.lengths_FB.flatten().long()
    ends = lengths.cumsum(0)
    spans_K = lengths[bags_K]
    within = torch.arange(int(spans_K.sum())) - (spans_K.cumsum(0) - spans_K).repeat_interleave(spans_K)
    return (ends - lengths)[bags_K].repeat_interleave(spans_K) + within


def _rare_shares(source: Source) -> dict[str, float]:
    """Returns the share of rare ids in the training split, by feature, as `prepare` has counted them."""
    if not isinstance(source, Store) or source.manifest.preparation is None:
        return {}
    report = PrepareReport.from_dict(source.manifest.preparation.report)
    return {column.name: column.rare_train for column in report.columns}
