"""First-order weights: the steps of tables with one column, and the buckets of dense features."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from dlrmctl.embeddings.collection import WideTables
from dlrmctl.embeddings.compression.composed import StoredWeights
from dlrmctl.embeddings.compression.rules.rows import StoredRows
from dlrmctl.embeddings.ids import SparseIds
from dlrmctl.embeddings.sharding.shard import shard, sparse_state
from dlrmctl.embeddings.wide import BUCKETS, WIDTH, Wide, bucket_ids, column_settings, padded_edges, wide_features
from tests.embeddings.reference import EVERYTHING, ONE_HOT, embed, make_bags, part_of, rowwise_adagrad, to_kjt
from tests.ranks import run_ranks

BATCH, STEPS, LR, EPS = 12, 5, 0.1, 1e-3  # an epsilon that matters
FEATURES = {"one-hot": wide_features(ONE_HOT, []), "all kinds": wide_features(EVERYTHING, [])}


def _upstream(step: int) -> torch.Tensor:
    return torch.randn(BATCH, generator=torch.Generator().manual_seed(100 + step))


def _trained(which: str) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """This rank's weights after five steps, and its part of the sums of every step."""
    features, rank, world_size = FEATURES[which], dist.get_rank(), dist.get_world_size()
    lr, eps = column_settings(LR, EPS)
    sharded = shard(
        WideTables(features),
        device=torch.device("cpu"),
        batch_size=BATCH // world_size,
        seed=0,
        sparse_lr=lr,
        qr_lr=lr,
        eps=eps,
        sharding="table_wise" if world_size == 1 else "row_wise",
    )
    sums = []
    for step in range(STEPS):
        out = sharded.dmp(to_kjt(part_of(make_bags(features, BATCH, step), rank, world_size)))
        sums.append(out.detach().clone())
        out.backward(_upstream(step).chunk(world_size)[rank])
    state = {name: value.local_shards() for name, value in sparse_state(sharded.dmp).items()}
    return {name: pieces[0].tensor.clone() for name, pieces in state.items() if pieces}, sums


@pytest.mark.parametrize("which", FEATURES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_steps_are_those_of_tables_with_one_column_in_float64(which: str, world_size: int) -> None:
    features = FEATURES[which]
    found = run_ranks(_trained, world_size, which)
    rows = {
        key: rows
        for f in features
        for lookup in f.lookups
        for key, rows in zip(lookup.keys, lookup.partition.table_rows, strict=True)
    }
    tables = {name: torch.zeros(count, 1, dtype=torch.float64) for name, count in rows.items()}
    sums = {name: torch.zeros(count, dtype=torch.float64) for name, count in rows.items()}
    for step in range(STEPS):
        leaves = {name: table.clone().requires_grad_() for name, table in tables.items()}
        out = embed(features, leaves, make_bags(features, BATCH, step), 1).sum((1, 2))
        # Sums of float32 weights below 1, up to 100 of each example.
        assert torch.allclose(torch.cat([kept[step] for _, kept in found]).double(), out, rtol=0, atol=1e-5)
        out.backward(_upstream(step).double() / world_size)  # TorchRec averages over the ranks
        for name, table in tables.items():
            grad = leaves[name].grad
            if grad is not None:
                rowwise_adagrad(table, sums[name], grad, LR, EPS)
    for name, table in tables.items():
        weights = torch.cat([state[f"{name}/weight"] for state, _ in found if f"{name}/weight" in state])
        # Errors of float32 gradients, 2**-24 relative per occurrence, compound over 5 steps of size lr.
        assert torch.allclose(weights[:, 0].double(), table[:, 0], rtol=1e-5, atol=1e-6), name
        assert not weights[:, 1:].any(), name


def test_stored_weights_give_the_sums_that_training_gives() -> None:
    features = FEATURES["all kinds"]
    generator = torch.Generator().manual_seed(0)
    tables = {
        table.name: torch.randn(table.rows, WIDTH, generator=generator) for f in features for table in f.tables(WIDTH)
    }
    stored = StoredWeights(features, {name: StoredRows(rows, WIDTH, 32) for name, rows in tables.items()})
    bags = make_bags(features, BATCH, 0)
    first = {name: rows[:, :1].double() for name, rows in tables.items()}
    expected = embed(features, first, bags, 1).sum((1, 2))
    assert torch.allclose(stored(to_kjt(bags)).double(), expected, rtol=1e-5, atol=1e-5)  # float32 sums of 100 terms


def test_a_value_has_the_bucket_that_begins_at_or_below_it_and_a_missing_one_its_own() -> None:
    edges = padded_edges([[0.0, 1.0, 5.0], []])
    dense = torch.tensor([[-1.0, 3.0], [0.0, float("nan")], [4.9, -9.0], [5.0, 0.0], [float("nan"), 1e30]])
    assert bucket_ids(dense, edges).tolist() == [[1, 2, 3, 4, 0], [1, 0, 1, 1, 1]]


class _Ids(torch.nn.Module):
    def forward(self, sparse: object) -> object:
        return sparse


def test_buckets_are_one_more_id_each_beside_one_hot_and_multi_hot_features() -> None:
    dense = torch.tensor([[0.5, float("nan")], [2.0, 1.0]])
    wide = Wide(_Ids(), ["x", "y"], padded_edges([[1.0], [0.0]]))
    for features in (ONE_HOT, EVERYTHING):
        kjt = to_kjt(make_bags(features, 2, 0))
        found = wide(dense, kjt)
        assert list(found.keys) == [*kjt.keys(), "x", "y"]
        assert found.values.tolist() == [*kjt.values().tolist(), 1, 2, 0, 2]
        assert (found.lengths_KB is None) == (features is ONE_HOT)
        if found.lengths_KB is not None:
            assert found.lengths_KB.flatten().tolist() == [*kjt.lengths().tolist(), 1, 1, 1, 1]
        assert found.weights is None
        weights = torch.rand(len(kjt.values()))
        found = wide(dense, replace(SparseIds.of(kjt), weights=weights))
        assert found.weights.tolist() == [*weights.tolist(), 1, 1, 1, 1]


def test_a_feature_has_no_more_rows_than_buckets() -> None:
    names = [feature.name for feature in wide_features(EVERYTHING, ["x"])]
    assert names == [*(feature.name for feature in EVERYTHING), "x"]
    assert wide_features([], ["x"])[0].rows == BUCKETS + 1
