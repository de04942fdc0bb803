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
        table = FeatureTable(
            f"f{index}",
            rows,
            embedding=draw(st.sampled_from(EMBEDDINGS)),
            collisions=draw(st.sampled_from([1, 3, 3, 7, 90])),
            qr_layout=draw(st.sampled_from(["quotient", "remainder"])),
            ways=draw(st.integers(2, 4)),
            head=draw(st.integers(1, rows - 1)),
            tail=draw(st.sampled_from(["hash", "qr"])),
            headroom=3.0,
        )
        days = sorted(draw(st.sets(st.integers(rows + 1, 3 * rows), max_size=3)))
        return replace(table, rows=[rows, *days][-1], before=tuple([rows, *days][:-1]))

    return [one(index) for index in range(draw(st.integers(1, 7)))]


@settings(max_examples=60)
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


@settings(max_examples=60)
@given(chosen=features())
def test_known_ids_keep_their_rows_when_tables_grow(chosen):
    for grown in (feature for feature in chosen if feature.before):
        rows, *before = reversed([*grown.before, grown.rows])
        first = replace(grown, rows=before[0], before=tuple(reversed(before[1:])))
        ids = torch.arange(first.rows)
        old, new = first.partition, grown.partition
        for a, b, sizes in zip(old(ids), new(ids), zip(old.table_rows, new.table_rows, strict=True), strict=True):
            assert torch.equal(a, b)
            assert sizes[0] <= sizes[1]
        every = torch.stack(new(torch.arange(rows)))
        assert bool((every < torch.tensor(new.table_rows).unsqueeze(1)).all())
        if new.complementary:
            assert len(every.unique(dim=1).T) == rows


def test_the_most_frequent_new_ids_of_a_head_have_rows_of_their_own():
    grown = FeatureTable("f", 160, embedding="head", head=30, collisions=10, before=(100, 120))
    (rows,) = grown.partition(torch.arange(160))
    assert grown.partition.table_rows == (30 + 7 + 6 + 12,)
    assert rows[100:106].tolist() == list(range(37, 43))  # 30 % of 20 new ids, and then of 40
    assert rows[120:132].tolist() == list(range(43, 55))
    assert int(rows[106:120].max()) < 37


def test_missing_rows_are_left_out_of_their_bags():
    found = torch.tensor([3, -1, -1, 5, 0, -1])
    rows, lengths_KB = without_missing(found, torch.tensor([[2, 0], [1, 3]], dtype=torch.int32), 2)
    assert rows.tolist() == [3, 5, 0]
    assert (lengths_KB.tolist(), lengths_KB.dtype) == ([[1, 0], [0, 2]], torch.int32)
    rows, lengths_KB = without_missing(found, None, 2)
    assert (rows.tolist(), lengths_KB.tolist()) == ([3, 5, 0], [[1, 0, 0], [1, 1, 0]])
