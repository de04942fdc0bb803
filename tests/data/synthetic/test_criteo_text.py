"""Synthetic rows become text that a preparation turns back into the same examples."""

import gzip
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import whole_file
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.schema import MISSING_ROW
from dlrmctl.data.store.store import Store
from dlrmctl.data.synthetic.cardinalities import SIZES
from dlrmctl.data.synthetic.criteo_text import chunk, chunk_edges, criteo_text, criteo_values
from dlrmctl.data.synthetic.synthetic import BLOCK_ROWS, Synthetic
from dlrmctl.datasets.synthesize import file_names
from tests.data.criteo_files import prepare_criteo


def test_text_is_what_python_would_write() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500)
    integers = rng.integers(-(10 ** rng.integers(1, 9, (13, 500))), 10 ** rng.integers(1, 9, (13, 500)))
    integers[:5, :8] = [[0, 1, -1, 9999, 10_000, -10_000, 99_999_999, -99_999_999]] * 5
    values = rng.integers(0, 1 << 32, (26, 500), dtype=np.uint32)
    values[0, :3] = (0, 1, 2**32 - 1)
    has_integer, has_value = rng.random((13, 500)) < 0.8, rng.random((26, 500)) < 0.8
    expected = [
        "\t".join(
            [
                str(labels[n]),
                *(str(x) if there else "" for x, there in zip(integers[:, n], has_integer[:, n], strict=True)),
                *(f"{v:08x}" if there else "" for v, there in zip(values[:, n], has_value[:, n], strict=True)),
            ]
        )
        for n in range(500)
    ]
    assert criteo_text(labels, integers, has_integer, values, has_value).decode().splitlines() == expected


def test_an_integer_of_nine_digits_is_refused() -> None:
    integers, there = np.array([[5], [-(10**8)]]), np.ones((2, 1), dtype=bool)
    with pytest.raises(ValueError, match="the integer 100000000 has more than 8 digits"):
        criteo_text(np.zeros(1), integers, there, np.zeros((1, 1), np.uint32), there[:1])
    there[1] = False  # what is missing is not written
    assert criteo_text(np.zeros(1), integers, there, np.zeros((1, 1), np.uint32), there[:1]) == b"0\t5\t\t00000000\n"


def test_rows_have_values_of_their_own() -> None:
    rows = np.arange(1 << 20)
    columns = [criteo_values(column, rows) for column in (0, 1, 25)]
    assert all(len(np.unique(values)) == len(rows) for values in columns)
    assert not (columns[0] == columns[1]).any()


@pytest.mark.parametrize("size", ["small", "kaggle"])
def test_prepared_rows_are_the_examples_they_were_written_from(tmp_path: Path, size: str) -> None:
    rows = 3 * BLOCK_ROWS + 100
    source = Synthetic(4, rows, 1, 1, cardinalities=SIZES[size])
    ends = [0, 9000, rows]
    edges = chunk_edges(rows, ends)
    paths = [tmp_path / "day_0.tsv", tmp_path / "day_1.tsv.gz"]
    for path, first, end in zip(paths, ends, ends[1:], strict=False):
        with whole_file(path) as file:
            for a, b in pairwise(edges):
                if first <= a < end:
                    file.write(chunk(source, a, b).text)
    report = prepare_criteo(paths, tmp_path / "store", PrepareOptions(min_count=1))
    assert (report.rows, report.lines) == (rows, rows)
    assert not report.repaired
    store = Store(tmp_path / "store")
    blocks = [
        store.read_block(split, index)
        for split in ("train", "validation", "test")
        for index in range(-(-store.num_examples(split) // store.block_rows))
    ]
    written = [source.read_block("train", index) for index in range(4)]
    labels = np.concatenate([block.labels_N for block in written])
    assert np.array_equal(np.concatenate([block.labels_N for block in blocks]), labels)
    dense = np.concatenate([block.dense_IN for block in written], axis=1)
    found = np.concatenate([block.dense_IN for block in blocks], axis=1)
    assert np.array_equal(found, dense.astype(np.float16), equal_nan=True)
    num_train = store.num_examples("train")
    for column in range(26):
        ours = np.concatenate([block.ids_F[column] for block in written])
        theirs = np.concatenate([block.ids_F[column] for block in blocks]).astype(np.int64)
        assert np.array_equal(ours == MISSING_ROW, theirs == MISSING_ROW)
        # One to one, among the values that training rows have; the others are all rare.
        pairs = np.unique(np.stack((ours[:num_train], theirs[:num_train])), axis=1)
        assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
        renumbered = dict(pairs.T.tolist())
        expected = [renumbered.get(row, 1) if row != MISSING_ROW else MISSING_ROW for row in ours[num_train:].tolist()]
        assert theirs[num_train:].tolist() == expected


def test_chunks_count_the_labels_and_probabilities_of_their_rows() -> None:
    source = Synthetic(4, 20_000, 1, 1)
    edges = chunk_edges(20_000, [100, 20_000])
    assert edges == [0, 100, 8192, 16384, 20_000]
    chunks = [chunk(source, a, b) for a, b in pairwise(edges)]
    whole = chunks[0].tally
    for other in chunks[1:]:
        whole.merge(other.tally)
    assert whole.bayes() == source.bayes("train")
    assert sum(len(c.text.splitlines()) for c in chunks) == sum(c.rows for c in chunks) == 20_000


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "day.tsv"

    def fail() -> None:
        with whole_file(path) as file:
            file.write(b"half of it")
            assert not path.exists()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []
    with whole_file(path) as file:
        file.write(b"all of it")
    assert path.read_bytes() == b"all of it"
    assert os.listdir(tmp_path) == ["day.tsv"]


def test_equal_rows_give_equal_compressed_files(tmp_path: Path) -> None:
    for name in ("a.tsv.gz", "b.tsv.gz"):
        with whole_file(tmp_path / name) as file:
            file.write(b"0\t1\n" * 1000)
    assert (tmp_path / "a.tsv.gz").read_bytes() == (tmp_path / "b.tsv.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.tsv.gz").read_bytes()) == b"0\t1\n" * 1000


def test_several_files_need_several_names() -> None:
    assert file_names("x/day_{n}.tsv", 2) == [Path("x/day_0.tsv"), Path("x/day_1.tsv")]
    assert file_names("day.tsv", 1) == [Path("day.tsv")]
    with pytest.raises(DataError, match="2 files need a name") as caught:
        file_names("x/day.tsv.gz", 2)
    assert caught.value.hint == "'x/day_{n}.tsv.gz'"
