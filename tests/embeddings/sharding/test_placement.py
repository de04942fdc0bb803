import pytest
from torch import device

from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.sharding.memory import available_bytes, gib, state_bytes, table_bytes, weight_bytes
from dlrmctl.embeddings.sharding.placement import (
    CACHED,
    CPU_BYTES_PER_SECOND,
    FUSED,
    Placement,
    PlacementError,
    describe,
    make_plan,
    place_on_devices,
    rank_bytes,
)
from dlrmctl.embeddings.tables import FeatureTable, Table

GIB = 2**30


def _plan(features: list[FeatureTable], **settings):
    embeddings = CompositionalEmbeddings(features, 64)
    defaults = {"world_size": 16, "local_world_size": 8, "device_type": "cuda", "batch_size": 4096}
    return make_plan(embeddings, embeddings, **defaults | settings)[1]


def test_a_cluster_that_is_not_here_can_be_planned():
    # 64 columns and one sum, 260 bytes a row: 9.7 GiB each of the two large ones.
    features = [FeatureTable("a", 40_000_000), FeatureTable("b", 40_000_000), FeatureTable("c", 1000, 5)]
    placements = _plan(features, memory_bytes=8 * GIB)
    assert [p.sharding for p in placements[:2]] == ["row_wise"] * 2
    assert all(sum(p.rank_rows) == p.rows for p in placements)
    per_rank = rank_bytes(placements, 16)
    assert sum(per_rank) == sum(p.bytes for p in placements)
    assert max(per_rank) < 8 * GIB


def test_cpu_ranks_keep_tables_whole_unless_they_must_be_cut():
    features = [
        FeatureTable(f"f{i}", rows) for i, rows in enumerate([1_000_000, 300_000, 20_000, 5000, 500, 30, 10, 3])
    ]
    cpu = {"device_type": "cpu", "world_size": 2, "local_world_size": 2}
    assert {p.sharding for p in _plan(features, **cpu)} == {"table_wise"}
    # The first takes 260 million bytes.
    tight = _plan(features, **cpu, memory_bytes=230_000_000)
    assert tight[0].sharding == "row_wise"
    assert max(rank_bytes(tight, 2)) < 230_000_000


def test_no_rank_is_left_without_a_row_of_a_cut_table():
    """FBGEMM looks up on the wrong device in a group of tables without any row."""
    features = [FeatureTable(f"t{rows}", rows) for rows in (1, 3, 4, 10, 57)]
    for bandwidths in (None, (300e9, 300e9)):  # slow networks keep tables whole, fast ones cut them
        for table in _plan(features, world_size=8, device_type="cpu", batch_size=64, bandwidths=bandwidths):
            assert table.sharding == "table_wise" or min(table.rank_rows) > 0, table
    cut = _plan(features, world_size=8, device_type="cpu", sharding="row_wise")
    assert [(len(table.ranks), sum(table.rank_rows)) for table in cut] == [(1, 1), (1, 3), (1, 4), (1, 10), (8, 57)]


def test_one_rank_holds_everything_whole():
    placements = _plan([FeatureTable("a", 30)], sharding="row_wise", world_size=1, local_world_size=1)
    assert (placements[0].sharding, placements[0].ranks, placements[0].rank_rows) == ("table_wise", (0,), (30,))


def test_what_lookups_need_counts_as_well():
    # The table alone fits to the byte; its inputs and outputs do not.
    table = FeatureTable("a", 1000)
    with pytest.raises(PlacementError, match=r"with the inputs and outputs of lookups they need .*the only rank has"):
        _plan([table], world_size=1, local_world_size=1, memory_bytes=1000 * 260)


def test_bytes():
    assert table_bytes(Table("a", 1000, 16)) == 1000 * (16 * 4 + 4)
    assert table_bytes(Table("a", 1000, 16), rows=10) == 680
    assert [gib(n) for n in (1000, 3 * 2**20, 5 * GIB)] == ["1,000 bytes", "3.0 MiB", "5.00 GiB"]
    one, two = available_bytes(device("cpu")), available_bytes(device("cpu"), local_ranks=2)
    assert one is not None
    assert two is not None
    assert 2**20 < two < one


def test_slow_networks_keep_tables_whole_and_fast_ones_cut_them():
    # What row-wise sharding exchanges is sums for the examples of all ranks: worth it only where that is quick.
    features = [FeatureTable(f"f{i}", 2_000_000, 20) for i in range(4)]
    slow = _plan(features, bandwidths=(1e9, 1e8))
    assert {p.sharding for p in slow} == {"table_wise"}
    fast = _plan(features, bandwidths=(1e16, 1e16))
    assert "row_wise" in {p.sharding for p in fast}
    # The bandwidths of CPU ranks are those assumed, unless others are given.
    cpu = {"device_type": "cpu", "world_size": 2, "local_world_size": 2}
    assumed = (CPU_BYTES_PER_SECOND, CPU_BYTES_PER_SECOND)
    assert _plan(features, **cpu) == _plan(features, **cpu, bandwidths=assumed)


def test_weights_and_state_are_the_bytes_of_a_table():
    table = Table("a", 1000, 16)
    assert (weight_bytes(1000, 16), state_bytes(1000)) == (64_000, 4000)
    assert weight_bytes(table.rows, table.dim) + state_bytes(table.rows) == table_bytes(table)


def test_shards_go_to_the_gpu_that_their_rank_sees():
    embeddings = CompositionalEmbeddings([FeatureTable("a", 1000), FeatureTable("b", 4_000_000)], 64)
    settings = {"world_size": 4, "local_world_size": 4, "device_type": "cuda", "batch_size": 4096}
    plan, placements = make_plan(embeddings, embeddings, **settings, sharding="row_wise")
    place_on_devices(plan, [0, 0, 0, 0])  # every rank sees one GPU
    shards = [
        shard.placement for tables in plan.plan.values() for t in tables.values() for shard in t.sharding_spec.shards
    ]
    assert [(place.rank(), str(place.device())) for place in shards] == [(rank, "cuda:0") for rank in range(4)] * 2
    assert describe(plan, embeddings) == placements


LARGE = [FeatureTable("a", 100_000_000), FeatureTable("b", 40_000_000), FeatureTable("c", 1000)]
ALONE = {"world_size": 1, "local_world_size": 1, "batch_size": 64}


def _kernels(placements: list[Placement]) -> list[str]:
    return [table.kernel for table in placements]


def test_tables_leave_the_gpu_only_if_asked_and_as_few_as_needed():
    # 64 columns and one sum: 24.2 GiB of the first table, 9.7 of the second.
    assert _kernels(_plan(LARGE, **ALONE, memory_bytes=35 * GIB, placement="auto")) == [FUSED] * 3
    assert _kernels(_plan(LARGE, **ALONE, memory_bytes=20 * GIB, placement="auto")) == [CACHED, FUSED, FUSED]
    tight = _plan(LARGE, **ALONE, memory_bytes=9 * GIB, placement="auto")
    assert _kernels(tight) == [CACHED, CACHED, FUSED]
    assert rank_bytes(tight, 1)[0] < 9 * GIB
    assert _kernels(_plan(LARGE, **ALONE, memory_bytes=20 * GIB, placement="uvm")) == [CACHED] * 3
    for placement, room in (("hbm", 20), ("auto", 2), ("uvm", 2)):  # the caches of all: 8.3 GiB
        with pytest.raises(PlacementError, match="the embedding tables do not fit"):
            _plan(LARGE, **ALONE, memory_bytes=room * GIB, placement=placement)


def test_a_table_in_host_memory_has_its_cache_and_its_sums_on_the_gpu():
    (large, _, small) = _plan(LARGE, **ALONE, placement="uvm", uvm_cache=0.1)
    slots = 10_000_000  # rows of 64 float32, the number of each and when it was used; and a number for all rows
    assert large.rank_cache_bytes == (slots * (64 * 4 + 16) + 100_000_000 * 4,)
    assert small.rank_cache_bytes == (128 * (64 * 4 + 16) + 1000 * 4,)  # 100 rows in sets of 32
    assert rank_bytes([large], 1) == [large.rank_cache_bytes[0] + 100_000_000 * 4]
    assert large.rank_weights() == (100_000_000 * 64 * 4,)


def test_a_cut_table_has_a_cache_on_each_gpu():
    (table,) = _plan([FeatureTable("a", 40_000_000)], sharding="row_wise", placement="uvm", uvm_cache=0.5)
    assert table.kernel == CACHED
    assert table.rank_cache_bytes == (1_250_016 * (64 * 4 + 16) + 2_500_000 * 4,) * 16  # 1,250,000 in sets of 32


def test_tables_of_one_kernel_have_a_cache_as_wide_as_the_widest():
    plain = FeatureTable("plain", 1600)
    halves, sums = (
        FeatureTable(operation, 3200, embedding="qr", collisions=2, operation=operation)
        for operation in ("concat", "add")
    )
    # Tables that are combined have a learning rate, and so a kernel, of their own.
    for features, columns in (([plain, halves], 32), ([plain, halves, sums], 64)):
        placements = {table.dim: table for table in _plan(features, **ALONE, placement="uvm") if table.rows == 1600}
        assert placements[32].rank_cache_bytes == (320 * (columns * 4 + 16) + 1600 * 4,)
        assert placements[64].rank_cache_bytes == (320 * (64 * 4 + 16) + 1600 * 4,)


def test_half_precision_takes_half_the_weights():
    embeddings = CompositionalEmbeddings([FeatureTable("a", 1000)], 64, precision="fp16")
    settings = {"device_type": "cuda", **ALONE}
    ((table,), (cached,)) = (
        make_plan(embeddings, embeddings, **settings, placement=placement)[1] for placement in ("hbm", "uvm")
    )
    assert (table.precision, table.bytes, rank_bytes([table], 1)) == (
        "fp16",
        1000 * (64 * 2 + 4),
        [1000 * (64 * 2 + 4)],
    )
    assert cached.rank_cache_bytes == (224 * (64 * 2 + 16) + 1000 * 4,)  # 200 rows in sets of 32
    plan, _ = make_plan(embeddings, embeddings, **settings)
    (sharding,) = (each for tables in plan.plan.values() for each in tables.values())
    assert sharding.stochastic_rounding is True


def test_a_cpu_has_no_other_memory_for_tables():
    with pytest.raises(ValueError, match="on a CPU hbm"):
        _plan([FeatureTable("a", 1000)], device_type="cpu", placement="uvm")
