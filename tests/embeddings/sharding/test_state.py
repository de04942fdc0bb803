import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.sharding.shard import Sharded, shard, sparse_state
from tests.embeddings.reference import EVERYTHING, make_bags, part_of, to_kjt
from tests.ranks import run_ranks

DIM, BATCH = 8, 12


def _make(seed: int, sharding: str, precision: str = "fp32") -> Sharded:
    return shard(
        CompositionalEmbeddings(EVERYTHING, DIM, precision=precision),
        device=torch.device("cpu"),
        batch_size=BATCH,
        seed=seed,
        sparse_lr=0.1,
        qr_lr=0.2,
        sharding=sharding,
    )


def _step(sharded: Sharded, step: int) -> torch.Tensor:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    out = sharded.dmp(to_kjt(part_of(make_bags(EVERYTHING, BATCH, step), rank, world_size)))
    # A sum over examples on every rank; TorchRec averages gradients over ranks, so this is a mean with weight 1/ranks.
    (out.square().sum() * world_size).backward()
    return out.detach()


def _local(sharded: Sharded) -> dict[str, list[tuple[int, torch.Tensor]]]:
    return {
        name: [(p.metadata.shard_offsets[0], p.tensor.clone()) for p in value.local_shards()]
        for name, value in sparse_state(sharded.dmp).items()
    }


def _save(path: str, sharding: str, precision: str = "fp32") -> tuple[dict, torch.Tensor]:
    sharded = _make(0, sharding, precision)
    for step in range(3):
        _step(sharded, step)
    dcp.save({"sparse": sparse_state(sharded.dmp)}, checkpoint_id=path)
    return _local(sharded), _step(sharded, 3)


def _load(path: str, sharding: str, precision: str = "fp32") -> tuple[dict, torch.Tensor]:
    sharded = _make(1, sharding, precision)
    dcp.load({"sparse": sparse_state(sharded.dmp)}, checkpoint_id=path)
    return _local(sharded), _step(sharded, 3)


def _assemble(ranks: list[dict]) -> dict[str, torch.Tensor]:
    pieces: dict[str, list] = {}
    for local in ranks:
        for name, parts in local.items():
            pieces.setdefault(name, []).extend(parts)
    return {name: torch.cat([t for _, t in sorted(parts, key=lambda p: p[0])]) for name, parts in pieces.items()}


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
@pytest.mark.parametrize("ranks", [(2, 1), (1, 2), (2, 2)])
def test_a_checkpoint_loads_bitwise_on_other_ranks(tmp_path, sharding, ranks):
    saving, loading = ranks
    saved = run_ranks(_save, saving, str(tmp_path), sharding)
    other = {"table_wise": "row_wise", "row_wise": "table_wise"}[sharding]
    loaded = run_ranks(_load, loading, str(tmp_path), other)
    before, after = _assemble([r[0] for r in saved]), _assemble([r[0] for r in loaded])
    assert before.keys() == after.keys()
    assert {name.split("/")[1] for name in before} == {"weight", "sum"}
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    # And the loaded tensors are the model: a lookup gives the same, to the order of a sum of at most 4 rows.
    assert torch.allclose(torch.cat([r[1] for r in saved]), torch.cat([r[1] for r in loaded]), rtol=0, atol=1e-6)


def test_a_checkpoint_loads_into_a_whole_module_without_ranks(tmp_path):
    saved = run_ranks(_save, 2, str(tmp_path), "row_wise")
    module = CompositionalEmbeddings(EVERYTHING, DIM, device="cpu")
    weights = {f"{name.split('.')[-2]}/weight": p.detach() for name, p in module.named_parameters()}
    dcp.load({"sparse": weights}, checkpoint_id=str(tmp_path), no_dist=True)
    for name, value in _assemble([r[0] for r in saved]).items():
        if name.endswith("/weight"):
            assert torch.equal(value, weights[name]), name
    out = module(to_kjt(make_bags(EVERYTHING, BATCH, 3)))
    assert torch.allclose(out, torch.cat([r[1] for r in saved]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("saved_as", "loaded_as"), [("fp16", "fp32"), ("fp32", "fp16")])
def test_a_checkpoint_loads_into_tables_of_another_precision(tmp_path, saved_as, loaded_as):
    before, outputs = run_ranks(_save, 1, str(tmp_path), "table_wise", saved_as)[0]
    after, now = run_ranks(_load, 1, str(tmp_path), "table_wise", loaded_as)[0]
    kinds = {"fp32": torch.float32, "fp16": torch.float16}
    for name, ((_, value),) in before.items():
        (_, loaded) = after[name][0]
        weights = name.endswith("/weight")
        assert (value.dtype, loaded.dtype) == (
            (kinds[saved_as], kinds[loaded_as]) if weights else (torch.float32,) * 2
        ), name
        assert torch.equal(value.to(loaded.dtype), loaded), name
    assert outputs.dtype == now.dtype == torch.float32
    # float16 has 11 bits; products of two rows and sums of at most 4.
    assert torch.allclose(outputs, now, rtol=1e-2, atol=1e-3)
