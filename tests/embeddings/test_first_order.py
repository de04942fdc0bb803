"""One weight per row, summed over the ids of a bag."""

import pytest
import torch

from dlrmctl.embeddings.first_order import FirstOrder
from dlrmctl.embeddings.ids import SparseIds
from dlrmctl.embeddings.tables import FeatureTable


def test_an_id_counts_as_often_as_it_occurs_and_hashed_ids_share_a_weight():
    module = FirstOrder([FeatureTable("a", 3), FeatureTable("b", 6, 3, "hash", collisions=2)])
    assert module.sizes == [3, 3]
    with torch.no_grad():
        module.weight_R.copy_(torch.tensor([1.0, 2.0, 4.0, 10.0, 20.0, 40.0]))
    lengths_FB = torch.tensor([[1, 1, 1], [3, 0, 2]])
    sums = module(SparseIds(("a", "b"), torch.tensor([2, 0, 1, 4, 1, 1, 0, 3]), lengths_FB, 3))
    assert sums.squeeze(2).tolist() == [[4.0, 60.0], [1.0, 0.0], [2.0, 20.0]]
    weights = torch.tensor([1.0, 1, 1, 0.5, 2, 1, 0, 3])
    sums = module(SparseIds(("a", "b"), torch.tensor([2, 0, 1, 4, 1, 1, 0, 3]), lengths_FB, 3, weights))
    assert sums.squeeze(2).tolist() == [[4.0, 70.0], [1.0, 0.0], [2.0, 30.0]]
    assert {name: weight.tolist() for name, weight in module.tables().items()}["a"] == [[1.0], [2.0], [4.0]]


def test_a_feature_with_two_tables_is_refused():
    with pytest.raises(ValueError, match="feature a has more than one table"):
        FirstOrder([FeatureTable("a", 100, 1, "qr", collisions=4)])
