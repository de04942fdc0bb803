from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrmctl.embeddings.ids import RowIds, SparseIds, without_missing
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.embeddings.words import EMBEDDINGS
from tests.embeddings.reference import make_bags, to_kjt


@st.composite
def features(draw) -> list[FeatureTable]:
    def one(index: int) -> FeatureTable:
        rows = draw(st.integers(2, 60))
        return FeatureTable(
            f"f{index}",
            rows,
            embedding=draw(st.sampled_from(EMBEDDINGS)),
            collisions=draw(st.sampled_from([1, 3, 3, 7, 90])),
            qr_layout=draw(st.sampled_from(["quotient", "remainder"])),
            ways=draw(st.integers(2, 4)),
            head=draw(st.integers(1, rows - 1)),
            tail=draw(st.sampled_from(["hash", "qr"])),
        )

    return [one(index) for index in range(draw(st.integers(1, 7)))]


@settings(max_examples=60, deadline=None)
@given(chosen=features(), max_ids=st.sampled_from([1, 3]), batch_size=st.integers(1, 6), narrow=st.booleans())
def test_all_features_at_once_give_what_their_partitions_give(chosen, max_ids, batch_size, narrow):
    module = RowIds([lookup for feature in chosen for lookup in feature.lookups])
    declared = [FeatureTable(f.name, f.rows, max_ids) for f in chosen]
    bags = make_bags(declared, batch_size, seed=0)
    sparse = SparseIds.of(to_kjt(bags))
    if narrow:
        sparse = replace(sparse, values=sparse.values.int())
    before = sparse.values.clone()
    rows = module(sparse)
    assert torch.equal(sparse.values, before)
    out = rows.kjt()
    assert sorted(rows.keys) == sorted(key for f in chosen for lookup in f.lookups for key in lookup.keys)
    for feature in chosen:
        for lookup in feature.lookups:
            for part, key in enumerate(lookup.keys):
                found = out[key]
                ends = found.lengths().cumsum(0).tolist()
                for ids, start, end in zip(bags[feature.name], [0, *ends], ends, strict=False):
                    expected = lookup.partition(torch.tensor(ids, dtype=torch.int64))[part]
                    assert found.values()[start:end].tolist() == expected[expected >= 0].tolist()


def test_missing_rows_are_left_out_of_their_bags():
    found = torch.tensor([3, -1, -1, 5, 0, -1])
    rows, lengths_KB = without_missing(found, torch.tensor([[2, 0], [1, 3]], dtype=torch.int32), 2)
    assert rows.tolist() == [3, 5, 0]
    assert (lengths_KB.tolist(), lengths_KB.dtype) == ([[1, 0], [0, 2]], torch.int32)
    rows, lengths_KB = without_missing(found, None, 2)
    assert (rows.tolist(), lengths_KB.tolist()) == ([3, 5, 0], [[1, 0, 0], [1, 1, 0]])
