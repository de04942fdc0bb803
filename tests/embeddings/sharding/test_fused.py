import pytest
import torch
import torch.distributed as dist

from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.sharding.fused import attach_rowwise_adagrad, kernels
from dlrmctl.embeddings.sharding.shard import shard, sparse_state
from dlrmctl.embeddings.tables import FeatureTable
from tests.embeddings.reference import (
    MORE_MULTI_HOT,
    MORE_ONE_HOT,
    MULTI_HOT,
    ONE_HOT,
    embed,
    make_bags,
    rowwise_adagrad,
    to_kjt,
)
from tests.ranks import run_ranks

DIM, BATCH, STEPS, EPS = 8, 12, 6, 1e-8
FEATURES = {"one-hot": ONE_HOT, "multi-hot": MULTI_HOT, "more-one-hot": MORE_ONE_HOT, "more-multi-hot": MORE_MULTI_HOT}


def _trained(which: str, rates: list[tuple[float, float]]) -> tuple[dict, dict]:
    """Initial values, and tables and sums after one step per pair of learning rates."""
    features = FEATURES[which]
    sharded = shard(
        CompositionalEmbeddings(features, DIM),
        device=torch.device("cpu"),
        batch_size=BATCH,
        seed=0,
        sparse_lr=rates[0][0],
        qr_lr=rates[0][1],
        eps=EPS,
    )
    live = {name: value.local_shards()[0].tensor for name, value in sparse_state(sharded.dmp).items()}
    initial = {name: value.clone() for name, value in live.items()}
    for step, (sparse_lr, qr_lr) in enumerate(rates):
        sharded.set_learning_rates(sparse_lr=sparse_lr, qr_lr=qr_lr)
        if step == 2:
            sharded.dmp.fused_optimizer.zero_grad()  # writes its own copy of the rate into the kernels
        out = sharded.dmp(to_kjt(make_bags(features, BATCH, step)))
        out.backward(_upstream(out.shape[1], step))
    return initial, {name: value.clone() for name, value in live.items()}


def _upstream(num_features: int, step: int) -> torch.Tensor:
    return torch.randn(BATCH, num_features, DIM, generator=torch.Generator().manual_seed(100 + step))


@pytest.mark.parametrize("which", FEATURES)
def test_steps_equal_a_float64_loop_while_learning_rates_change(which):
    rates = [(0.05 / (1 + step), 0.2 * (1 + step)) for step in range(STEPS)]
    [(initial, final)] = run_ranks(_trained, 1, which, rates)
    features = FEATURES[which]
    names = [name.split("/")[0] for name in initial if name.endswith("/weight")]
    tables = {name: initial[f"{name}/weight"].double() for name in names}
    sums = {name: torch.zeros(len(table), dtype=torch.float64) for name, table in tables.items()}
    for step, (sparse_lr, qr_lr) in enumerate(rates):
        leaves = {name: table.clone().requires_grad_() for name, table in tables.items()}
        out = embed(features, leaves, make_bags(features, BATCH, step), DIM)
        out.backward(_upstream(out.shape[1], step).double())
        for name, table in tables.items():
            if leaves[name].grad is not None:
                lr = qr_lr if "@" in name and "@h" not in name else sparse_lr
                rowwise_adagrad(table, sums[name], leaves[name].grad, lr, EPS)
    for name in names:
        # Errors of float32 gradients, 2**-24 relative per occurrence, compound over 6 steps of size up to lr = 1.2.
        assert torch.allclose(final[f"{name}/weight"].double(), tables[name], rtol=1e-5, atol=1e-5), name
        assert torch.allclose(final[f"{name}/sum"].double(), sums[name], rtol=1e-4, atol=1e-7), name
        moved = (final[f"{name}/weight"] != initial[f"{name}/weight"]).any(dim=1)
        assert torch.equal(moved, sums[name] > 0), f"{name}: exactly the rows with a gradient move"


def _kernel_tables(lr: float) -> list[list[str]]:
    sharded = shard(
        CompositionalEmbeddings(ONE_HOT, DIM),
        device=torch.device("cpu"),
        batch_size=BATCH,
        seed=0,
        sparse_lr=lr,
        qr_lr=lr,
    )
    return [names for _, names in kernels(sharded.dmp)]


def test_learning_rates_stay_apart_even_where_they_begin_equal():
    [groups] = run_ranks(_kernel_tables, 1, 0.1)
    assert [["@" in name for name in group] for group in groups] == [[False] * 3, [True] * 8]


def _two_runs_differ() -> bool:
    rates = [(0.1, 0.3)] * 3
    torch.set_num_threads(2)
    try:
        first = _trained("multi-hot", rates)[1]
    finally:
        torch.set_num_threads(1)
    second = _trained("multi-hot", rates)[1]
    return any(not torch.equal(first[name], second[name]) for name in first)


def test_steps_are_bitwise_repeatable_on_any_number_of_threads():
    assert run_ranks(_two_runs_differ, 1) == [False]


def _two_forwards() -> list[int]:
    assert dist.get_world_size() == 1
    sharded = shard(
        CompositionalEmbeddings([FeatureTable("a", 10)], DIM),
        device=torch.device("cpu"),
        batch_size=1,
        seed=0,
        sparse_lr=0.1,
        qr_lr=0.1,
    )
    weight = sparse_state(sharded.dmp)["a/weight"].local_shards()[0].tensor
    before = weight.clone()
    with torch.no_grad():
        sharded.dmp(to_kjt({"a": [[1]]}))
    sharded.dmp(to_kjt({"a": [[2]]})).detach()
    return (weight != before).any(dim=1).nonzero().flatten().tolist()


def test_a_forward_without_backward_changes_nothing():
    assert run_ranks(_two_forwards, 1) == [[]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparse_lr": -0.1}, "sparse_lr=-0.1 must be at least 0"),
        ({"qr_lr": float("nan")}, "qr_lr=nan must be at least 0"),
        ({"eps": 0.0}, "eps=0.0 must be above 0"),
    ],
)
def test_settings_out_of_bounds_are_named(settings, message):
    module = CompositionalEmbeddings([FeatureTable("a", 10)], DIM)
    with pytest.raises(ValueError, match=message):
        attach_rowwise_adagrad(module, **{"sparse_lr": 0.1, "qr_lr": 0.1} | settings)
