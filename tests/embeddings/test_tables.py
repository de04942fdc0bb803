import pytest

from embeddings.choose import choose_tables
from embeddings.tables import FeatureTable, Table


def test_small_features_stay_full():
    chosen = choose_tables([("a", 199, 1), ("b", 200, 3)], kind="qr", collisions=4, operation="add", threshold=200)
    assert chosen == [FeatureTable("a", 199), FeatureTable("b", 200, 3, "qr", 4, "add")]


def test_a_feature_whose_tables_would_not_shrink_stays_full():
    assert choose_tables([("a", 300, 1)], kind="qr", collisions=1, threshold=1)[0].kind == "full"
    assert choose_tables([("a", 5, 1)], kind="qr", collisions=5, threshold=1)[0].kind == "full"
    assert choose_tables([("a", 300, 1)], kind="hash", collisions=1, threshold=1)[0].kind == "full"


def test_tables_of_each_kind():
    assert FeatureTable("a", 10).tables(8) == (Table("a", 10, 8),)
    assert FeatureTable("a", 10, kind="hash", collisions=3).tables(8) == (Table("a", 4, 8),)
    assert FeatureTable("a", 10, kind="qr", collisions=3).tables(8) == (Table("a@q", 4, 8), Table("a@r", 3, 8))
    concat = FeatureTable("a", 10, kind="qr", collisions=3, operation="concat", large="remainder")
    assert concat.tables(8) == (Table("a@q", 3, 4), Table("a@r", 4, 4))


def test_compression_reaches_the_ratio_asked_for():
    chosen = choose_tables([("a", 1_000_000, 1)], kind="qr", collisions=50)
    assert sum(t.rows for t in chosen[0].tables(16)) == 20_000 + 50


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FeatureTable("a.b", 5), r"feature name 'a.b' must not be empty or contain any of \. / @"),
        (lambda: FeatureTable("", 5), "feature name '' must not be empty"),
        (
            lambda: FeatureTable("a", 5, kind="tree"),
            "feature a: kind='tree' must be one of full, hash, qr, kway, crt, head, double-hash",
        ),
        (
            lambda: FeatureTable("a", 5, operation="xor"),
            "feature a: operation='xor' must be one of mult, add, concat, features, path",
        ),
        (lambda: FeatureTable("a", 5, large="both"), "feature a: large='both' must be one of quotient, remainder"),
        (lambda: FeatureTable("a", 0), "feature a: rows=0 must be at least 1"),
        (lambda: FeatureTable("a", 5, collisions=0), "feature a: collisions=0 must be at least 1"),
        (lambda: FeatureTable("a", 5, 0), "feature a: max_ids=0 must be at least 1"),
        (lambda: FeatureTable("a", 5).tables(6), "dim=6 must be a positive multiple of 4"),
        (lambda: FeatureTable("a", 5, kind="qr", operation="concat").tables(12), r"dim/2=6 .*multiple of 4.* of 12"),
        (lambda: choose_tables([("a", 5, 1), ("a", 6, 1)]), r"feature names must differ, \['a'\] are repeated"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
