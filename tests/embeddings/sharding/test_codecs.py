"""What ranks exchange, compressed."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.largest import rows_cut
from dlrmctl.embeddings.sharding.codecs import CodecError, TableExchange, TopK
from dlrmctl.embeddings.sharding.shard import shard, sparse_state
from dlrmctl.embeddings.tables import FeatureTable
from tests.embeddings.reference import make_bags, part_of, to_kjt
from tests.ranks import run_ranks

DIM, BATCH = 8, 16
CPU = torch.device("cpu")


@pytest.mark.parametrize(("k", "dim", "entry"), [(4, 16, 3), (1, 8, 3), (8, 8, 3), (5, 300, 4)])
def test_the_k_largest_of_every_vector_arrive_and_nothing_else(k: int, dim: int, entry: int):
    vectors = torch.randn(50, dim, generator=torch.Generator().manual_seed(0))
    codec = TopK(k, dim)
    message = codec.encode(vectors)
    assert message.numel() == codec.calc_quantized_size(vectors.numel()) == 50 * k * entry
    arrived = codec.decode(message).view(50, dim)
    largest = vectors.abs().topk(k, dim=1).indices
    wanted = torch.zeros(50, dim).scatter_(1, largest, vectors.bfloat16().float().gather(1, largest))
    assert torch.equal(arrived, wanted)


def test_numbers_that_float16_cannot_hold_arrive():
    vectors = torch.tensor([[1e20, -1e-20, 0.0, 0.0]])
    assert torch.allclose(TopK(2, 4).decode(TopK(2, 4).encode(vectors)), vectors.flatten(), rtol=2**-8)


FEATURES = [FeatureTable("a", 30), FeatureTable("b", 50, max_ids=3), FeatureTable("c", 7)]


def _exchanged(
    codec: tuple[str, int] | None, sharding: str = "table_wise", features: list[FeatureTable] = FEATURES
) -> list:
    """Vectors of a batch as they arrive, those after a step, raw bytes and sent bytes."""
    model = nn.Sequential(CompositionalEmbeddings(features, DIM))
    rates = {"sparse_lr": 0.1, "qr_lr": 0.1}
    sharded = shard(model, device=CPU, sharding=sharding, batch_size=BATCH, seed=3, codec=codec, **rates)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    kjt = to_kjt(part_of(make_bags(features, BATCH * world_size, 5), rank, world_size))
    exchange = sharded.exchange or TableExchange()
    exchange.active = True
    vectors = sharded.dmp(kjt)
    weights = torch.linspace(-1, 1, vectors.numel()).view_as(vectors)
    (vectors * weights).sum().mul(1e-7).backward()  # smaller than float16's numbers
    exchange.active = False
    return [vectors.detach(), sharded.dmp(kjt).detach(), exchange.raw_bytes, exchange.sent_bytes]


def test_vectors_are_cut_to_k_on_the_way_and_bytes_are_counted():
    for plain, cut in zip(run_ranks(_exchanged, 2, None), run_ranks(_exchanged, 2, ("topk", 2)), strict=True):
        whole, arrived = plain[0], cut[0]
        kept = whole.abs().topk(2, dim=-1).indices
        wanted = torch.zeros_like(whole).scatter_(-1, kept, whole.bfloat16().float().gather(-1, kept))
        assert torch.equal(arrived, wanted)
    raw, sent = (sum(rank[i] for rank in run_ranks(_exchanged, 2, ("topk", 2))) for i in (2, 3))
    assert raw == 2 * 4 * (2 * BATCH) * len(FEATURES) * DIM  # there and back, of two ranks together
    assert raw * 3 * 2 == sent * 4 * DIM


@pytest.mark.parametrize(
    ("codec", "sharding", "entry"),
    [
        (("topk", DIM), "table_wise", 3.0),
        (("fp16", 0), "table_wise", 2.0),
        (("bf16", 0), "table_wise", 2.0),
        (("int8", 0), "table_wise", 1.25),
        (("fp16", 0), "row_wise", 2.0),
        (("bf16", 0), "row_wise", 2.0),
    ],
    ids=str,
)
def test_a_step_with_rounded_messages_is_nearly_the_same(codec: tuple[str, int], sharding: str, entry: float):
    plain, rounded = run_ranks(_exchanged, 2, None, sharding), run_ranks(_exchanged, 2, codec, sharding)
    raw, sent = (sum(rank[i] for rank in rounded) for i in (2, 3))
    assert raw * entry == sent * 4
    for ours, theirs in zip(rounded, plain, strict=True):
        # Rows step by about the rate of 0.1, whatever the size of their gradients. int8 rounds a block of them to 255
        # steps of its range, which is much for the smallest.
        assert (ours[1] - theirs[1]).abs().mean() < (0.02 if codec[0] == "int8" else 0.003)
        assert not torch.allclose(ours[1], ours[0], rtol=0, atol=0.02)


def _refused(codec: tuple[str, int], sharding: str, features: list[FeatureTable]) -> str:
    with pytest.raises(CodecError) as error:
        _exchanged(codec, sharding, features)
    return str(error.value)


@pytest.mark.parametrize(
    ("codec", "sharding", "features", "message"),
    [
        (("int8", 0), "row_wise", FEATURES, "int8 cannot be used for the table a, whose rows are divided"),
        (("topk", 2), "row_wise", FEATURES, "topk cannot be used for the table a, whose rows are divided"),
        (("topk", 9), "table_wise", FEATURES, "topk:9 keeps 9 of the 8 numbers of a row of a"),
        (
            ("topk", 2),
            "table_wise",
            [FeatureTable("a", 30), FeatureTable("b", 61, 1, "qr", 5, "concat")],
            "topk needs tables of one width, and b@q has 4 columns, a 8",
        ),
    ],
    ids=str,
)
def test_a_codec_that_cannot_serve_a_table_names_it(
    codec: tuple[str, int], sharding: str, features: list[FeatureTable], message: str
):
    assert all(found.startswith(message) for found in run_ranks(_refused, 2, codec, sharding, features))


def test_one_rank_exchanges_nothing():
    [(_, _, raw, sent)] = run_ranks(_exchanged, 1, ("topk", 2))
    assert raw == sent == 0


def _cut() -> tuple[bool, bool]:
    """Whether rows have two numbers while they are cut, and all of them as before afterwards."""
    model = nn.Sequential(CompositionalEmbeddings(FEATURES, DIM))
    sharded = shard(model, device=CPU, sharding="row_wise", batch_size=BATCH, seed=3, sparse_lr=0.1, qr_lr=0.1)
    tables = sparse_state(sharded.dmp)

    def rows() -> torch.Tensor:
        shards = [s.tensor for n, t in tables.items() if n.endswith("/weight") for s in t.local_shards()]
        return torch.cat(shards).clone()

    before = rows()
    with rows_cut(tables, 2):
        cut = rows()
    return bool(((cut != 0).sum(1) == 2).all()), torch.equal(rows(), before)


def test_rows_are_cut_for_scoring_and_restored_to_the_bit():
    assert run_ranks(_cut, 2) == [(True, True)] * 2
