"""Tables as large as Criteo's are drawn in constant memory, evenly scrambled, with a known optimum."""

import subprocess
import sys

import numpy as np
import pytest

from dlrmctl.data.randomness import Use, words
from dlrmctl.data.schema import MISSING_ROW, RESERVED_ROWS
from dlrmctl.data.synthetic.cardinalities import CARDINALITIES, KAGGLE, SIZES
from dlrmctl.data.synthetic.draws import MISSING_RANK, PowerLaw, Scramble
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.data.synthetic.teacher import PROBABILITIES, TeacherScores, hashed_effects, random_effects, score_teacher

BLOCKS = 16


@pytest.fixture(scope="module")
def kaggle() -> Synthetic:
    return Synthetic(0, 1_000_000, 20_000, 20_000, cardinalities=KAGGLE)


def test_sizes_are_those_of_criteo() -> None:
    assert SIZES["small"] == CARDINALITIES
    assert (len(KAGGLE), sum(KAGGLE)) == (26, 33_762_577)
    assert max(SIZES["medium"]) == 200_000


def test_known_bits_do_not_change(kaggle: Synthetic) -> None:
    # Recorded once: checkpoints and published numbers rely on them.
    block = kaggle.read_block("train", 3)
    assert [int(ids.sum()) for ids in block.ids_F[2:5]] == [33740815359, 7099218233, 775984]
    assert int(block.labels_N.sum()) == 1996
    assert int(hashed_effects(np.arange(1000), 39, 7, 2).sum()) == 12149488783349101207


def test_ranks_follow_the_power_law() -> None:
    law = PowerLaw.of(1_000_000, 1 / 15)
    ranks = law.draw(words(1 << 19, 1, Use.EXAMPLES).view(np.uint32))
    total = len(ranks)
    assert ranks.max() < 1_000_000
    assert abs((ranks == MISSING_RANK).mean() - 273 / 4096) < 4 * np.sqrt(1 / 15 / total)
    there = ranks[ranks >= 0]
    edges = np.array([0, 1, 2, 3, 10, 100, 1000, 10_000, 100_000, 1_000_000])
    found = np.histogram(there, edges)[0]
    expected = len(there) * -np.diff((edges + 1.0) ** -0.05) / (1 - 1_000_001**-0.05)
    # A straight piece moves at most the share of one piece, 1 / 4096, across an edge.
    assert (abs(found - expected) < 4 * np.sqrt(expected) + len(there) / 4096).all()


@pytest.mark.parametrize("count", [1, 2, 20_000, 1 << 26])
def test_the_first_and_the_last_word_draw_the_first_and_the_last_rank(count: int) -> None:
    law = PowerLaw.of(count, 0.0)
    assert law.draw(np.array([0, 2**32 - 1], dtype=np.uint32)).tolist() == [0, count - 1]
    # No piece holds more ranks than its words can tell apart, so that every rank is drawn by some word.
    assert law.widths.max() >> 16 < 1 << 20
    assert (law.widths >= 0).all()


@pytest.mark.parametrize("count", [1, 2, 3, 1000, (1 << 16) + 1, 100_000])
def test_a_scramble_takes_every_number_once(count: int) -> None:
    order = Scramble(count, 3, 1)(np.arange(count))
    assert np.array_equal(np.sort(order), np.arange(count))


def test_a_scramble_leaves_no_order_behind() -> None:
    count, groups = 100_000, 25
    for column in range(3):
        order = Scramble(count, 3, column)(np.arange(count)).astype(np.int64)
        # Neighbours and evenly spaced numbers fall anywhere: into 25 classes alike, by remainder and by quotient.
        for step in (1, 4, 64, 1000):
            gaps = (order[step:] - order[:-step]) % count
            for classes in (gaps % groups, gaps // (count // groups)):
                counts = np.bincount(classes, minlength=groups)
                chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
                assert chi_square < 24 + 6 * np.sqrt(2 * 24)  # 24 degrees of freedom, six deviations


def test_hashed_effects_are_like_listed_ones() -> None:
    for slots in (39, 500):
        hashed = hashed_effects(np.arange(100_000), slots, 5, 2)
        listed = random_effects(100_000, slots, 5, 2)
        lanes = [
            ((packed[:, None] >> np.arange(0, 64, 16, dtype=np.uint64)) & np.uint64(0xFFFF)).astype(float)
            for packed in (hashed, listed)
        ]
        top = 0xFFFF // slots
        assert lanes[0].max() <= top
        # A mean of 100,000 moves by a deviation of .15 / 316 of the range; rounding down costs up to 1.5 levels.
        assert (abs(lanes[0].mean(axis=0) - lanes[1].mean(axis=0)) < 0.003 * top + 1.5).all()
        assert (abs(lanes[0].std(axis=0) / lanes[1].std(axis=0) - 1) < 0.02).all()
        correlations = np.corrcoef(lanes[0].T)[np.triu_indices(4, 1)]
        assert abs(correlations).max() < 5 / np.sqrt(100_000)
        neighbours = [np.corrcoef(lanes[0][1:, lane], lanes[0][:-1, lane])[0, 1] for lane in range(4)]
        assert np.abs(neighbours).max() < 5 / np.sqrt(100_000)


def test_large_tables_are_used_widely(kaggle: Synthetic) -> None:
    blocks = [kaggle.read_block("train", index) for index in range(BLOCKS)]
    for column, ids in enumerate(KAGGLE):
        rows = np.concatenate([block.ids_F[column] for block in blocks])
        assert rows.min() >= 0
        assert rows.max() < ids + RESERVED_ROWS
        assert not (rows == 1).any()
        assert abs((rows == MISSING_ROW).mean() - (column * 7 % 6) / 15) < 0.01
        if ids > 1_000_000:
            there = rows[rows != MISSING_ROW]
            assert there.max() > 0.99 * ids
            different = len(np.unique(there))
            assert 0.2 < different / len(there) < 0.6  # many are rare, as in Criteo
            # The most frequent ones lie anywhere.
            values, counts = np.unique(there, return_counts=True)
            head = values[np.argsort(-counts)[:64]] / ids
            assert abs(head.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 64)


@pytest.mark.parametrize("size", ["small", "medium", "kaggle"])
def test_the_scores_of_the_truth_are_what_the_probabilities_promise(size: str) -> None:
    source = Synthetic(11, BLOCKS * 8192, 10, 10, cardinalities=SIZES[size])
    tally = TeacherScores()
    for index in range(BLOCKS):
        examples = source.read_examples("train", index)
        tally.add(examples.block.labels_N, examples.steps_N)
    drawn = tally.bayes()
    assert drawn == source.bayes("train")
    per_step, p = tally.counts.sum(axis=0), PROBABILITIES
    promised = score_teacher(np.stack([per_step * (1 - p), per_step * p]))
    total = per_step.sum()
    # The log loss of a label that is 1 with probability p has the variance p (1 - p) logit(p)**2.
    variance = np.dot(per_step, p * (1 - p) * np.log(p / (1 - p)) ** 2) / total**2
    assert abs(drawn.log_loss - promised.log_loss) < 4 * np.sqrt(variance)
    # The error of the AUC by DeLong, from how each positive ranks among the negatives and the other way round.
    negatives, positives = per_step * (1 - p), per_step * p
    above = (np.cumsum(negatives) - negatives / 2) / negatives.sum()
    below = 1 - (np.cumsum(positives) - positives / 2) / positives.sum()
    spread = [np.dot(w, (v - promised.auc) ** 2) / w.sum() ** 2 for w, v in ((positives, above), (negatives, below))]
    assert abs(drawn.auc - promised.auc) < 4 * np.sqrt(sum(spread))
    assert 0.76 < drawn.ne < 0.82
    assert 0.78 < drawn.auc < 0.82


def test_kaggle_takes_little_memory() -> None:
    program = (
        "import resource\nimport numpy\n"
        "from dlrmctl.data.synthetic.cardinalities import KAGGLE\n"
        "from dlrmctl.data.synthetic.synthetic import Synthetic\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "source = Synthetic(0, 10**9, 10, 10, cardinalities=KAGGLE)\n"
        "for index in range(5):\n    source.read_block('train', index)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150 * 1024  # KiB; one int32 per id would be 129 MiB, their effects 258 MiB
