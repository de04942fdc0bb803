import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlrmctl.embeddings.tables import FeatureTable, Table
from tests.embeddings.reference import EVERYTHING


def test_tables_of_each_kind():
    assert FeatureTable("a", 10).tables(8) == (Table("a", 10, 8),)
    assert FeatureTable("a", 10, embedding="hash", collisions=3).tables(8) == (Table("a", 4, 8),)
    assert FeatureTable("a", 10, embedding="qr", collisions=3, qr_layout="quotient").tables(8) == (
        Table("a@q", 4, 8),
        Table("a@r", 3, 8),
    )
    concat = FeatureTable("a", 10, embedding="qr", collisions=3, operation="concat", qr_layout="remainder")
    assert concat.tables(8) == (Table("a@q", 3, 4), Table("a@r", 4, 4))
    kway = FeatureTable("a", 1000, embedding="kway", collisions=40, operation="features")
    assert kway.tables(8) == (Table("a@1", 25, 8), Table("a@2", 7, 8), Table("a@3", 6, 8))
    assert kway.vectors == 3
    crt = FeatureTable("a", 1000, embedding="crt", collisions=40, operation="concat", ways=2)  # 32 x 33
    assert crt.tables(8) == (Table("a@1", 33, 4), Table("a@2", 32, 4))
    double = FeatureTable("a", 1000, embedding="double-hash", collisions=40)
    assert double.tables(8) == (Table("a@1", 13, 8), Table("a@2", 13, 8))
    head = FeatureTable("a", 1000, embedding="head", collisions=40, head=200)
    assert head.tables(8) == (Table("a", 220, 8),)
    both = FeatureTable(
        "a", 1000, embedding="head", collisions=40, head=200, tail="qr", operation="concat", qr_layout="quotient"
    )
    assert both.tables(8) == (Table("a@h", 200, 8), Table("a@q", 20, 4), Table("a@r", 40, 4))


@pytest.mark.parametrize("feature", EVERYTHING, ids=lambda feature: feature.name)
def test_own_rows_are_those_of_a_single_id_and_all_ids_of_full_tables_and_heads_have_one(feature):
    head = 7 if feature.embedding == "head" else 0
    for days, added in (((), 0), ((20,), 7), ((20, 26, 30), 2 + 1 + 3)):
        grown = replace(feature, rows=40, before=days, collisions=3, head=head, headroom=3)
        ids = torch.arange(40)
        own = grown.own_rows(ids)
        if grown.embedding not in ("full", "head"):
            assert own is None
            continue
        table, rows = own
        place = grown.table_names.index(table)
        all_rows = grown.partition(ids)[place].tolist()
        assert [all_rows.count(row) for row in rows.tolist()] == [1] * len(rows)
        assert len(rows) == (7 + added if head else 40)
        some = torch.tensor([0, 6, 12, 21, 39])
        assert set(grown.own_rows(some)[1].tolist()) == {all_rows[i] for i in some.tolist()} & set(rows.tolist())


@pytest.mark.parametrize(("layout", "widths"), [("quotient", [8, 128]), ("remainder", [128, 8])])
def test_the_small_table_of_a_path_holds_networks(layout, widths):
    tables = FeatureTable("a", 1000, embedding="qr", collisions=10, operation="path", qr_layout=layout).tables(8)
    assert [table.dim for table in tables] == widths


def test_partitions_have_the_rows_of_the_tables():
    for feature in EVERYTHING:
        assert feature.partition.table_rows == tuple(table.rows for table in feature.tables(24))


def test_a_table_is_its_plain_values():
    for feature in EVERYTHING:
        assert FeatureTable(**json.loads(json.dumps(feature.to_dict()))) == feature


@given(max_ids=st.integers(1, 5))
def test_only_what_is_linear_is_summed_first(max_ids):
    for operation, linear in {"mult": False, "path": False, "add": True, "concat": True, "features": True}.items():
        feature = FeatureTable("a", 90, max_ids, "qr", 3, operation)
        assert feature.pools_before_combining == (linear or max_ids == 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FeatureTable("", 5), r"the name of a feature must not be empty"),
        (
            lambda: FeatureTable("a", 5, embedding="tree"),
            "feature a: embedding='tree' must be one of full, hash, qr, kway",
        ),
        (lambda: FeatureTable("a", 5, operation="xor"), "feature a: operation='xor' must be one of mult, add, concat"),
        (
            lambda: FeatureTable("a", 5, qr_layout="both"),
            "feature a: qr_layout='both' must be one of quotient",
        ),
        (lambda: FeatureTable("a", 5, tail="cut"), "feature a: tail='cut' must be one of hash, qr"),
        (lambda: FeatureTable("a", 0), "feature a: rows=0 must be at least 1"),
        (lambda: FeatureTable("a", 5, collisions=0), "feature a: collisions=0 must be at least 1"),
        (lambda: FeatureTable("a", 5, 0), "feature a: max_ids=0 must be at least 1"),
        (lambda: FeatureTable("a", 5, ways=1), "feature a: ways=1 must be at least 2"),
        (lambda: FeatureTable("a", 5, embedding="head"), "feature a: head=0 must be at least 1 and below rows=5"),
        (
            lambda: FeatureTable("a", 5, embedding="head", head=5),
            "head=5 must be at least 1 and below rows=5",
        ),
        (
            lambda: FeatureTable("a", 5, embedding="kway", operation="path"),
            "feature a: operation='path' of embedding 'kway' must be one of mult, add, concat, features",
        ),
        (
            lambda: FeatureTable("a", 5, embedding="head", head=2, tail="qr", operation="features"),
            "operation='features' of embedding 'head' must be one of mult, add, concat",
        ),
        (lambda: FeatureTable("a", 5).tables(6), "dim=6 must be a positive multiple of 4"),
        (
            lambda: FeatureTable("a", 5, embedding="qr", operation="concat").tables(12),
            r"dim/2=6 .*multiple of 4",
        ),
        (
            lambda: FeatureTable("a", 50, embedding="kway", operation="concat").tables(16),
            r"3 parts of dim/3=5.33333 columns, which must be a multiple of 4; use a dim that is a multiple of 12",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_names_that_modules_cannot_have_are_written_otherwise():
    assert FeatureTable("user.id", 5).keys == ("user%2Eid",)
    assert FeatureTable("user%2Eid", 5).keys == ("user%252Eid",)
    assert FeatureTable("type", 5).keys == ("type@rows",)
    assert FeatureTable("type", 50, embedding="qr", collisions=4).keys == ("type@q", "type@r")
    assert FeatureTable("cat_1", 5).keys == ("cat_1",)
