"""Bags whose ids have weights: the sum of the weighted vectors, with every kind of table."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.compression.composed import compose
from dlrmctl.embeddings.compression.rules.rows import StoredRows
from dlrmctl.embeddings.ids import SparseIds
from dlrmctl.embeddings.sharding.shard import shard, sparse_state
from dlrmctl.embeddings.tables import FeatureTable
from tests.embeddings.reference import EVERYTHING, SHARED, make_bags, part_of, to_kjt
from tests.ranks import run_ranks

DIM, BATCH = 8, 8
LISTS = {"own": EVERYTHING, "shared": SHARED}


def _weighted(features: list[FeatureTable]) -> list[FeatureTable]:
    return [replace(feature, weighted=feature.max_ids > 1) for feature in features]


def _batch(features: list[FeatureTable], seed: int, rank: int = 0, world_size: int = 1) -> SparseIds:
    """Random bags; a weight depends on its id and on the feature."""
    sparse = SparseIds.of(to_kjt(part_of(make_bags(features, BATCH, seed), rank, world_size)))
    lists = torch.tensor([feature.max_ids > 1 for feature in features])
    is_list = lists.repeat_interleave(torch.tensor(sparse.values_per_key()))
    return replace(sparse, weights=torch.where(is_list, 0.5 + sparse.values % 5, 1.0))


@pytest.mark.parametrize("features", LISTS.values(), ids=LISTS)
def test_a_bag_is_the_weighted_sum_of_the_vectors_of_its_ids(features: list[FeatureTable]):
    features = _weighted(features)
    module = CompositionalEmbeddings(features, DIM, device="cpu", seed=1)
    tables = {name.split(".")[-2]: p.detach() for name, p in module.named_parameters()}
    stored = compose(features, DIM, {name: StoredRows(value, value.shape[1], 32) for name, value in tables.items()})
    sparse = _batch(features, 0)
    with torch.no_grad():
        out_BFD = module(sparse)
        assert torch.allclose(stored(sparse), out_BFD, rtol=0, atol=1e-5)
        assert sparse.weights is not None
        first = 0
        assert sparse.lengths_KB is not None
        pieces = sparse.values.split(sparse.values_per_key())
        weights = sparse.weights.split(sparse.values_per_key())
        for f, feature in enumerate(features):
            ids, count = pieces[f], len(pieces[f])
            others = [ids if k == f else torch.zeros(count, dtype=torch.int64) for k in range(len(features))]
            single = SparseIds([g.name for g in features], torch.cat(others), None, count)
            vectors = slice(first, first + feature.vectors)
            found = module(single)[:, vectors] * weights[f][:, None, None]
            owner = torch.arange(BATCH).repeat_interleave(sparse.lengths_KB[f])
            expected = torch.zeros(BATCH, feature.vectors, DIM).index_add_(0, owner, found)
            # float32 sums of at most 4 vectors below 10
            assert torch.allclose(out_BFD[:, vectors], expected, rtol=1e-5, atol=1e-5), feature.name
            first += feature.vectors


def _trained(features: list[FeatureTable], sharding: str, local: bool) -> dict[str, torch.Tensor]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cpu")
    module = CompositionalEmbeddings(features, DIM)
    sharded = shard(module, device=device, sharding=sharding, batch_size=BATCH, seed=3, sparse_lr=0.1, qr_lr=0.1)
    if not local:
        sharded.embeddings._pool_bags = None
    for step in range(3):
        sharded.embeddings(_batch(features, step, rank, world_size)).square().sum().div(BATCH // world_size).backward()
    whole = {}
    local_state = sparse_state(sharded.dmp)
    for place in sharded.plan:
        total = torch.zeros(place.rows, place.dim)
        name = f"{place.table}/weight"
        for piece in local_state[name].local_shards() if name in local_state else []:
            start = piece.metadata.shard_offsets[0]
            total[start : start + len(piece.tensor)] = piece.tensor
        dist.all_reduce(total)
        whole[place.table] = total
    return whole


@pytest.mark.parametrize("features", LISTS.values(), ids=LISTS)
def test_two_ranks_and_torchrec_itself_take_the_same_weighted_steps(features: list[FeatureTable]):
    features = _weighted(features)
    [alone] = run_ranks(_trained, 1, features, "auto", True)
    [exchanged] = run_ranks(_trained, 1, features, "auto", False)
    [together, _] = run_ranks(_trained, 2, features, "row_wise", False)
    for name, value in alone.items():
        # As in test_shard: float32 sums in another order, and AdaGrad's quotients of them.
        assert torch.allclose(value, exchanged[name], rtol=1e-4, atol=1e-5), name
        assert torch.allclose(value, together[name], rtol=1e-4, atol=1e-4), name
