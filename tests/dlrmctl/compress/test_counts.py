"""Id counts are converted to row counts for every partition."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlrmctl.compress.counts import RowCounts, counts_of_rows
from dlrmctl.compress.options import weigh
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.errors import UserError
from tests.embeddings.reference import EVERYTHING


@pytest.mark.parametrize("feature", EVERYTHING, ids=lambda feature: feature.name)
def test_a_row_counts_the_look_ups_of_all_ids_that_share_it(feature: FeatureTable):
    counts = np.random.default_rng(0).integers(0, 1000, feature.rows).astype(np.uint32)
    for lookup in feature.lookups:
        for part, (key, rows) in enumerate(zip(lookup.keys, lookup.partition.table_rows, strict=True)):
            slow = [0] * rows
            for id_ in range(feature.rows):
                row = int(lookup.partition(torch.tensor([id_]))[part])
                if row >= 0:
                    slow[row] += int(counts[id_])
            assert counts_of_rows(counts, feature, key).tolist() == slow


def test_data_without_a_store_has_no_counts():
    source = Synthetic(0, 1000, 10, 10)
    assert RowCounts(source, [FeatureTable("cat_1", 3)])("cat_1") is None


def test_weights_are_the_first_that_are_there():
    sums, counts = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 1.0, 0.0])
    table = SimpleNamespace(name="t", rows=3, dim=4)

    def kind(asked: str, *, has_sums: bool, has_counts: bool) -> str:
        source = SimpleNamespace(tables=[table], sums=lambda name: sums if has_sums else None)
        return weigh(source, "t", asked, lambda name: counts if has_counts else None).kind

    assert kind("auto", has_sums=True, has_counts=True) == "adagrad"
    assert kind("auto", has_sums=False, has_counts=True) == "counts"
    assert kind("auto", has_sums=False, has_counts=False) == "uniform"
    assert kind("counts", has_sums=True, has_counts=True) == "counts"
    assert kind("uniform", has_sums=True, has_counts=True) == "uniform"
    for asked in ("counts", "adagrad"):
        with pytest.raises(UserError, match=f"--weights {asked}: table t has none"):
            kind(asked, has_sums=False, has_counts=False)
