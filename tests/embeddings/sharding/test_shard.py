import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.sharding.placement import PlacementError
from dlrmctl.embeddings.sharding.shard import Sharded, shard, sparse_state
from dlrmctl.embeddings.tables import FeatureTable
from tests.embeddings.reference import (
    EVERYTHING,
    MIXED,
    MORE_MULTI_HOT,
    MORE_ONE_HOT,
    MULTI_HOT,
    ONE_HOT,
    SHARED,
    make_bags,
    part_of,
    to_kjt,
)
from tests.ranks import run_ranks

DIM, BATCH, STEPS = 8, 16, 20
CPU = torch.device("cpu")
LISTS = {
    "one-hot": ONE_HOT,
    "multi-hot": MULTI_HOT,
    "more-one-hot": MORE_ONE_HOT,
    "more-multi-hot": MORE_MULTI_HOT,
    "shared": SHARED,
}


class _Model(nn.Module):
    def __init__(self, features: list[FeatureTable]) -> None:
        super().__init__()
        self.embeddings = CompositionalEmbeddings(features, DIM)
        self.head = nn.Sequential(nn.Linear(self.embeddings.num_vectors * DIM, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, kjt):
        return self.head(self.embeddings(kjt).flatten(1)).squeeze(1)


def _sharded(features: list[FeatureTable], sharding: str = "auto", **settings) -> Sharded:
    torch.manual_seed(dist.get_rank())  # only rank 0's dense values count
    model = _Model(features)
    torch.manual_seed(0)
    if dist.get_rank() == 0:
        model.head = _Model(features).head
    defaults = {"batch_size": BATCH, "seed": 3, "sparse_lr": 0.1, "qr_lr": 0.2}
    return shard(model, device=CPU, sharding=sharding, **defaults | settings)


def _dense(sharded: Sharded) -> dict[str, torch.nn.Parameter]:
    """Every parameter that is not a table."""
    return {name: p for name, p in sharded.dmp.named_parameters() if not hasattr(p, "_in_backward_optimizers")}


def _whole(sharded: Sharded) -> dict[str, torch.Tensor]:
    """Every table, sum and dense parameter in one piece, on rank 0."""
    whole = {name: p.detach().clone() for name, p in _dense(sharded).items()}
    shapes = {f"{p.table}/weight": (p.rows, p.dim) for p in sharded.plan}
    shapes |= {f"{p.table}/sum": (p.rows,) for p in sharded.plan}
    local = sparse_state(sharded.dmp)
    for name, shape in shapes.items():
        total = torch.zeros(shape)
        for piece in local[name].local_shards() if name in local else []:
            start = piece.metadata.shard_offsets[0]
            total[start : start + piece.tensor.shape[0]] = piece.tensor
        dist.all_reduce(total)
        whole[name] = total
    return whole


def _train(features: list[FeatureTable], sharding: str) -> tuple[list[float], dict, dict]:
    sharded = _sharded(features, sharding)
    initial = _whole(sharded)
    optimizer = torch.optim.SGD(_dense(sharded).values(), lr=0.1)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    losses = []
    for step in range(STEPS):
        bags = make_bags(features, BATCH, step)
        labels = torch.rand(BATCH, generator=torch.Generator().manual_seed(step))
        size = BATCH // world_size
        out = sharded.dmp(to_kjt(part_of(bags, rank, world_size)))
        loss = (out - labels[rank * size : (rank + 1) * size]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach() / world_size
        dist.all_reduce(mean)
        losses.append(mean.item())
    return losses, initial, _whole(sharded)


@pytest.fixture(scope="module")
def one_rank():
    return {name: run_ranks(_train, 1, features, "auto")[0] for name, features in LISTS.items()}


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "auto"])
@pytest.mark.parametrize("which", LISTS)
def test_two_ranks_take_the_same_steps_as_one(one_rank, which, sharding):
    losses, initial, final = one_rank[which]
    for other_losses, other_initial, other_final in run_ranks(_train, 2, LISTS[which], sharding):
        for name, value in initial.items():
            assert torch.equal(value, other_initial[name]), name
        # Gradients are summed in another order, which changes them by a few units of 2**-24. AdaGrad divides by the
        # root of the sum of their squares, so a relative error stays one in a step of size lr; 20 steps of 0.2.
        assert losses == pytest.approx(other_losses, rel=1e-5)
        for name, value in final.items():
            assert torch.allclose(value, other_final[name], rtol=1e-4, atol=2e-5), name
    assert losses[-1] < losses[0]
    assert any(not torch.equal(final[name], value) for name, value in initial.items())


def _outputs_without_gradient(sharding: str) -> torch.Tensor:
    sharded = _sharded(EVERYTHING, sharding)
    kjt = to_kjt(part_of(make_bags(EVERYTHING, BATCH, 0), dist.get_rank(), dist.get_world_size()))
    with torch.no_grad():
        return sharded.embeddings(kjt)


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_a_sharded_module_returns_what_a_whole_one_does(sharding):
    whole = CompositionalEmbeddings(EVERYTHING, DIM, device="cpu", seed=3)
    expected = whole(to_kjt(make_bags(EVERYTHING, BATCH, 0)))
    out = torch.cat(run_ranks(_outputs_without_gradient, 2, sharding))
    # Row-wise shards are summed over ranks in another order than one table is.
    assert torch.allclose(out, expected, rtol=0, atol=1e-6 if sharding == "row_wise" else 1e-7)


def _facts(sharding: str) -> dict:
    sharded = _sharded(EVERYTHING, sharding)
    return {
        "plan": sharded.plan,
        "bytes": sharded.bytes_per_rank,
        "held": sum(
            piece.tensor.numel() * 4 for value in sparse_state(sharded.dmp).values() for piece in value.local_shards()
        ),
        "dense": sorted(_dense(sharded)),
        "wrapper": type(sharded.dmp._dmp_wrapped_module).__name__,
    }


def test_the_plan_says_where_every_byte_is():
    facts = run_ranks(_facts, 2, "table_wise")
    tables = [table for feature in EVERYTHING for table in feature.tables(DIM)]
    for rank, seen in enumerate(facts):
        assert seen["plan"] == facts[0]["plan"]
        assert [(p.table, p.rows, p.dim) for p in seen["plan"]] == [(t.name, t.rows, t.dim) for t in tables]
        assert seen["held"] == seen["bytes"][rank]
        assert all(p.sharding == "table_wise" and len(p.ranks) == 1 for p in seen["plan"])
    assert sum(facts[0]["bytes"]) == sum(p.bytes for p in facts[0]["plan"])
    assert facts == run_ranks(_facts, 2, "table_wise"), "the plan is the same every time"


def test_row_wise_cuts_the_rows_of_every_table():
    facts = run_ranks(_facts, 2, "row_wise")
    for placement in facts[0]["plan"]:
        assert placement.sharding == "row_wise"
        assert placement.ranks == (0, 1)
        assert sum(placement.rank_rows) == placement.rows
    assert [seen["held"] for seen in facts] == facts[0]["bytes"]


def test_dense_parameters_are_named_and_no_table_is_among_them():
    expected = ["head.0.bias", "head.0.weight", "head.2.bias", "head.2.weight"]
    [one] = run_ranks(_facts, 1, "auto")
    assert one["dense"] == expected
    assert one["wrapper"] == "_Model", "with one rank there is no DistributedDataParallel"
    two = run_ranks(_facts, 2, "auto")
    assert [seen["dense"] for seen in two] == [expected] * 2
    assert two[0]["wrapper"] == "DistributedDataParallel"


def _placement_error(features: list[FeatureTable], sharding: str, memory_bytes: int) -> str:
    try:
        _sharded(features, sharding, memory_bytes=memory_bytes)
    except PlacementError as error:
        return str(error)
    return "it fits"


# Far more than any machine has: an attempt to allocate it would fail loudly.
HUGE = [FeatureTable("small", 100), FeatureTable("huge", 2**40, embedding="hash", collisions=2)]


def test_tables_that_do_not_fit_are_refused_before_anything_is_allocated():
    for message in run_ranks(_placement_error, 2, HUGE, "auto", 2**33):
        assert "with their optimizer state they need 18432.00 GiB, 9216.00 GiB per rank" in message
        assert "each of 2 ranks has 8.00 GiB" in message
        assert "the largest, huge, has 549,755,813,888 rows of 8 and needs 18432.00 GiB" in message
        assert "Try more ranks, row-wise sharding, more collisions (hash or qr), or a smaller dim" in message
    [message] = run_ranks(_placement_error, 1, HUGE, "auto", 2**33)
    assert "the only rank has 8.00 GiB" in message


def test_a_table_too_large_for_one_rank_needs_row_wise():
    features = [FeatureTable("large", 10_000), FeatureTable("small", 10)]
    cap = 250_000  # the large table takes 10,000 * (8 * 4 + 4) = 360,000 bytes
    for message in run_ranks(_placement_error, 2, features, "table_wise", cap):
        assert "largest, large" in message
    assert run_ranks(_placement_error, 2, features, "row_wise", cap) == ["it fits"] * 2
    assert run_ranks(_placement_error, 2, features, "auto", cap) == ["it fits"] * 2


def _refusals() -> list[str]:
    messages = []
    for model, settings in (
        (_Model(ONE_HOT), {"sharding": "column_wise"}),
        (nn.Linear(2, 2), {}),
        (CompositionalEmbeddings(ONE_HOT, DIM, device="cpu"), {}),
    ):
        try:
            shard(model, device=CPU, batch_size=4, seed=0, sparse_lr=0.1, qr_lr=0.1, **settings)
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_what_cannot_be_sharded_is_refused():
    assert run_ranks(_refusals, 1)[0] == [
        "sharding='column_wise' must be one of auto, table_wise, row_wise",
        "the model must contain one CompositionalEmbeddings, found 0",
        "build CompositionalEmbeddings with device='meta': sharding gives the tables their memory",
    ]


QUIET = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
from dlrmctl.ranks.process import configure
from tests.embeddings.sharding.test_shard import MULTI_HOT, _sharded, make_bags, to_kjt
configure()
sharded = _sharded(MULTI_HOT)
sharded.dmp(to_kjt(make_bags(MULTI_HOT, 4, 0))).sum().backward()
dist.destroy_process_group()
"""


def test_nothing_is_printed(tmp_path):
    done = subprocess.run([sys.executable, "-c", QUIET, str(tmp_path / "store")], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _both_ways(features: list[FeatureTable]) -> list[dict]:
    results = []
    for local in (True, False):
        sharded = _sharded(features)
        if not local:
            sharded.embeddings._pool_bags = None
        assert (sharded.embeddings._pool_bags is not None) == local
        outs = []
        for step in range(3):
            out = sharded.embeddings(to_kjt(make_bags(features, BATCH, step)))
            out.square().sum().backward()
            outs.append(out.detach())
        results.append(_whole(sharded) | {"outs": torch.stack(outs)})
    return results


@pytest.mark.parametrize(
    "features", [*LISTS.values(), MIXED, EVERYTHING, [FeatureTable("a", 9), FeatureTable("b", 8, 3)]]
)
def test_lookups_without_the_exchange_equal_those_of_torchrec(features):
    [(local, torchrec)] = run_ranks(_both_ways, 1, features)
    assert all(torch.equal(value, torchrec[name]) for name, value in local.items())


def _evaluates_first() -> float:
    sharded = _sharded(MIXED)
    kjt = to_kjt(make_bags(MIXED, BATCH, 0))
    one_hot = to_kjt({f.name: [[i % 3] for i in range(BATCH)] for f in MIXED})
    with torch.inference_mode():
        first = sharded.dmp(kjt).sum() + sharded.dmp(one_hot).sum()
    for batch in (kjt, one_hot):
        sharded.dmp(batch).square().sum().backward()
    with torch.no_grad():
        return float(sharded.dmp(kjt).sum() + sharded.dmp(one_hot).sum() - first)


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_evaluation_before_the_first_step_does_no_harm(ranks):
    assert all(change != 0 for change in run_ranks(_evaluates_first, ranks))


def _tiny_tables(sharding: str) -> torch.Tensor:
    features = [FeatureTable("one", 1), FeatureTable("two", 2, 3)]
    sharded = _sharded(features, sharding)
    bags = part_of(make_bags(features, BATCH, 0), dist.get_rank(), dist.get_world_size())
    for _ in range(2):
        out = sharded.dmp(to_kjt(bags))
        out.square().mean().backward()
    return out.detach()


def test_tables_with_fewer_rows_than_ranks_train():
    [expected] = run_ranks(_tiny_tables, 1, "auto")
    assert torch.allclose(torch.cat(run_ranks(_tiny_tables, 2, "row_wise")), expected, rtol=0, atol=1e-5)


def _with_given_gradients(features: list[FeatureTable], sharding: str) -> dict[str, torch.Tensor]:
    sharded = _sharded(features, sharding)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    size = BATCH // world_size
    for step in range(5):
        out = sharded.embeddings(to_kjt(part_of(make_bags(features, BATCH, step), rank, world_size)))
        grad = torch.randn(BATCH, sharded.embeddings.num_vectors, DIM, generator=torch.Generator().manual_seed(step))
        # TorchRec averages over ranks; multiplying by 2 and dividing by 2 are exact.
        out.backward(grad[rank * size : (rank + 1) * size] * world_size)
    return {name: value for name, value in _whole(sharded).items() if name not in _dense(sharded)}


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
@pytest.mark.parametrize("features", LISTS.values(), ids=LISTS)
def test_tables_are_bitwise_those_of_one_rank_when_the_gradients_are(features, sharding):
    [expected] = run_ranks(_with_given_gradients, 1, features, "auto")
    for tables in run_ranks(_with_given_gradients, 2, features, sharding):
        assert all(torch.equal(value, tables[name]) for name, value in expected.items())
