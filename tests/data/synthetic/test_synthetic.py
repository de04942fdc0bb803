"""The generator makes the same bits wherever it runs, and its optimum is known."""

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.randomness import Use, permutation, words
from dlrmctl.data.reader import Reader
from dlrmctl.data.source import SPLITS, Block
from dlrmctl.data.synthetic.cardinalities import CARDINALITIES
from dlrmctl.data.synthetic.draws import Alias
from dlrmctl.data.synthetic.synthetic import BLOCK_ROWS, Synthetic
from dlrmctl.data.synthetic.teacher import PROBABILITIES, THRESHOLDS

SIZES = {"num_train": 100_000, "num_validation": 20_000, "num_test": 20_000}


@pytest.fixture(scope="module")
def source() -> Synthetic:
    return Synthetic(0, **SIZES)


def equal(a: Block, b: Block) -> bool:
    lengths = a.lengths_FN is b.lengths_FN is None or np.array_equal(a.lengths_FN, b.lengths_FN)
    ids = all(np.array_equal(x, y) for x, y in zip(a.ids_F, b.ids_F, strict=True))
    return (
        lengths
        and ids
        and np.array_equal(a.dense_IN, b.dense_IN, equal_nan=True)
        and np.array_equal(a.labels_N, b.labels_N)
    )


def test_a_block_depends_on_its_key_alone(source: Synthetic) -> None:
    again = Synthetic(0, num_train=10**9, num_validation=20_000, num_test=20_000)
    for split in SPLITS:
        assert equal(source.read_block(split, 1), again.read_block(split, 1))
    assert not equal(source.read_block("train", 0), source.read_block("train", 1))
    assert not equal(source.read_block("train", 0), source.read_block("validation", 0))
    assert not equal(source.read_block("train", 0), Synthetic(1, **SIZES).read_block("train", 0))


def test_a_longer_split_begins_with_the_shorter_one(source: Synthetic) -> None:
    last = 100_000 // BLOCK_ROWS
    short = source.read_block("train", last)
    long = Synthetic(0, num_train=10**9, num_validation=1, num_test=1).read_block("train", last)
    assert len(short) == 100_000 % BLOCK_ROWS
    assert len(long) == BLOCK_ROWS
    count = len(short)
    cut = Block(long.dense_IN[:, :count], [ids[:count] for ids in long.ids_F], long.labels_N[:count])
    assert equal(short, cut)


def test_known_bits_do_not_change(source: Synthetic) -> None:
    # Recorded once: checkpoints and published numbers rely on them.
    assert words(2, 7, Use.EXAMPLES, 1, 2).tolist() == [8752274914106351408, 4440757054814918346]
    assert permutation(8, 7, Use.ROW_ORDER, 1, 2).tolist() == [0, 5, 4, 1, 2, 7, 6, 3]
    block = source.read_block("train", 0)
    assert [int(ids[:1000].sum()) for ids in block.ids_F[-4:]] == [1907166, 1406065, 5382902, 4373399]
    assert int(block.labels_N.sum()) == 2128


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [2**63 - 1, 2**63, 2**64 - 1])
def test_seeds_of_64_bits_are_exact(seed: int) -> None:
    for first, second in ((1, 2), (2**63, 5), (2**64 - 1, 2**64 - 1)):
        # Whole integers are the other way NumPy takes a key, word 0 lowest.
        whole = np.random.Philox(key=seed, counter=first << 64 | second << 128 | int(Use.EXAMPLES) << 192)
        assert np.array_equal(words(4, seed, Use.EXAMPLES, first, second), whole.random_raw(4))
    assert sorted(permutation(9, seed, Use.ROW_ORDER).tolist()) == list(range(9))


def test_examples_look_like_criteo(source: Synthetic) -> None:
    assert len(source.schema.dense) == 13
    assert [feature.rows for feature in source.schema.sparse] == [ids + 2 for ids in CARDINALITIES]
    blocks = [source.read_block("train", index) for index in range(12)]
    labels = np.concatenate([block.labels_N for block in blocks])
    # Half a per cent is four standard deviations of the mean of 98,304 labels.
    assert abs(labels.mean() - 0.25) < 0.006
    for column, ids in enumerate(CARDINALITIES):
        values = np.concatenate([block.ids_F[column] for block in blocks])
        counts = np.bincount(values, minlength=ids + 2)
        assert len(counts) == ids + 2
        assert counts[1] == 0  # rare is for values outside a vocabulary, and there are none
        assert abs(counts[0] / len(values) - (column * 7 % 6) / 15) < 0.01
        order = np.argsort(-counts[2:])
        if ids >= 100:
            assert (np.diff(order[:20]) < 0).any()  # the order of the ids says nothing
            assert counts[2:].max() > 10 * np.median(counts[2:])
    dense = np.concatenate([block.dense_IN for block in blocks], axis=1)
    missing = np.isnan(dense)
    assert dense[~missing].min() >= np.float32(np.log(3))
    assert 0 < missing.mean() < 0.3


def test_the_optimum_is_known_and_worth_reaching(source: Synthetic) -> None:
    bayes = source.bayes("train")
    assert 0.43 < bayes.log_loss < 0.47
    assert 0.76 < bayes.ne < 0.84
    assert 0.77 < bayes.auc < 0.82
    other = source.bayes("test")
    assert abs(bayes.log_loss - other.log_loss) < 0.01  # three deviations of 20,000 rows' mean
    assert source.bayes("test") == other


def test_bayes_scores_are_those_of_a_slow_count() -> None:
    source = Synthetic(3, 700, 10, 10)
    examples = source.read_examples("train", 0)
    p, y = PROBABILITIES[examples.steps_N], examples.block.labels_N.astype(float)
    log_loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    base = y.mean()
    entropy = -(base * np.log(base) + (1 - base) * np.log(1 - base))
    above = [(a > b) + 0.5 * (a == b) for a in p[y == 1] for b in p[y == 0]]
    bayes = source.bayes("train")
    # Sums of 700 float64.
    assert bayes.log_loss == pytest.approx(log_loss, rel=1e-12)
    assert bayes.ne == pytest.approx(log_loss / entropy, rel=1e-12)
    assert bayes.auc == pytest.approx(np.mean(above), rel=1e-12)


def test_labels_are_drawn_with_the_teachers_probabilities(source: Synthetic) -> None:
    expected, found, variance = np.zeros(8), np.zeros(8), np.zeros(8)
    for index in range(12):
        examples = source.read_examples("train", index)
        p = PROBABILITIES[examples.steps_N]
        group = np.minimum((p * 8).astype(int), 7)
        expected += np.bincount(group, p, minlength=8)
        found += np.bincount(group, examples.block.labels_N, minlength=8)
        variance += np.bincount(group, p * (1 - p), minlength=8)
    assert (abs(found - expected) < 4 * np.sqrt(variance) + 1).all()
    np.testing.assert_array_equal(THRESHOLDS / 2**32, PROBABILITIES)


def test_lists_of_ids_have_their_lengths_and_count_in_the_label() -> None:
    source = Synthetic(0, 50_000, 10, 10, cardinalities=(50, 1000, 3), max_ids=(4, 1, 20), num_dense=2)
    assert [feature.max_ids for feature in source.schema.sparse] == [4, 1, 20]
    block = source.read_block("train", 0)
    assert block.lengths_FN is not None
    assert [int(n) for n in block.lengths_FN.min(axis=1)] == [1, 1, 1]
    assert [int(n) for n in block.lengths_FN.max(axis=1)] == [4, 1, 20]
    for ids, lengths, feature in zip(block.ids_F, block.lengths_FN, source.schema.sparse, strict=True):
        assert len(ids) == lengths.sum()
        assert ids.min() >= 0
        assert ids.max() < feature.rows
        firsts = np.cumsum(lengths) - lengths
        missing = np.flatnonzero(ids == 0)
        assert np.isin(missing, firsts).all()  # a list is missing as a whole
        assert (lengths[np.isin(firsts, missing)] == 1).all()
    bayes = source.bayes("train")
    assert bayes.ne < 0.9
    batch = next(Reader(source, "train", batch_size=16).batches(0))
    assert batch.lengths_FB is not None
    assert len(batch.ids) == batch.lengths_FB.sum()


def test_lists_of_one_are_what_no_lists_are() -> None:
    plain = Synthetic(5, 9000, 10, 10)
    listed = Synthetic(5, 9000, 10, 10, max_ids=[1] * len(CARDINALITIES))
    assert equal(plain.read_block("train", 0), listed.read_block("train", 0))
    assert plain.fingerprint() == listed.fingerprint() != Synthetic(6, 9000, 10, 10).fingerprint()


def test_ids_mean_the_same_whatever_the_number_of_examples() -> None:
    meaning = Synthetic(5, 9000, 10, 10, cardinalities=(5, 300)).vocabulary_fingerprint()
    assert meaning == Synthetic(5, 10, 700, 20, cardinalities=[5, 300]).vocabulary_fingerprint()
    for seed, cardinalities in ((6, (5, 300)), (5, (300, 5)), (5, (5, 301)), (5, (5, 300, 3))):
        assert meaning != Synthetic(seed, 9000, 10, 10, cardinalities=cardinalities).vocabulary_fingerprint()


def test_alias_tables_draw_the_distribution() -> None:
    weights = np.array([0, 5, 1, 0.001, 3, 0, 7])
    alias = Alias.of(weights)
    drawn = alias.draw(words(1 << 19, 0, Use.EXAMPLES).view(np.uint32))
    expected = weights / weights.sum() * len(drawn)
    counts = np.bincount(drawn, minlength=7)
    assert (abs(counts - expected) <= 5 * np.sqrt(expected)).all()
    (only,) = np.unique(Alias.of(np.array([0.0, 1.0])).draw(np.array([0, 2**31 - 1, 2**31, 2**32 - 1], np.uint32)))
    assert only == 1


def test_permutations_have_every_number_once_and_all_orders_alike() -> None:
    for count in (1, 2, 3, 64, 65, 1000):
        assert sorted(permutation(count, 3, Use.ROW_ORDER, 1).tolist()) == list(range(count))
    orders = [tuple(permutation(3, 3, Use.ROW_ORDER, key).tolist()) for key in range(6000)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts) < 150  # five deviations of 29


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "the seed -1 must be at least 0"),
        ({"num_test": 0}, "0 examples in the test split must be at least 1"),
        ({"cardinalities": (0,)}, "a cardinality of 0 must be at least 1"),
        ({"cardinalities": (5, 2**27)}, "a cardinality of 134217728"),
        ({"cardinalities": (5, 6), "max_ids": (1,)}, "1 longest lists for 2 sparse features"),
        ({"max_ids": 0}, "must be at least 1"),
        ({"label_rate": 0.0}, "a label rate of 0.0 must be between 0.01 and 0.99"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Synthetic(**settings)  # type: ignore[arg-type]


def test_a_block_that_is_not_there_is_refused(source: Synthetic) -> None:
    for index in (-1, 13):
        with pytest.raises(DataError, match=f"the train split has no block {index}"):
            source.read_block("train", index)
    with pytest.raises(DataError, match="there is no split 'dev'"):
        source.num_examples("dev")
