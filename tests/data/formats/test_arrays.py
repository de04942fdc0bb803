"""Triplets of NumPy files: read as they are, whatever their packing; whatever does not fit is named."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.arrays import NpyInput, open_npz
from dlrmctl.data.formats.raw import RawPiece

HOT = (3, 1, 2)


def _arrays(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    dense = draw.normal(size=(rows, 4)).astype(np.float32)
    labels = draw.integers(0, 2, (rows, 1)).astype(np.int32)
    ids = [draw.integers(0, 1000, (rows, hot)).astype(np.int32) for hot in HOT]
    return dense, labels, ids


def _save(path: Path, name: str, rows: int, *, multi_hot: bool = False, packed: bool = False, seed: int = 0):
    dense, labels, ids = _arrays(rows, seed)
    np.save(path / f"{name}_dense.npy", dense)
    np.save(path / f"{name}_labels.npy", labels)
    if multi_hot:
        save = np.savez_compressed if packed else np.savez
        save(path / f"{name}_sparse_multi_hot.npz", **{str(f): array for f, array in enumerate(ids)})
    else:
        ids = [array[:, :1] for array in ids]
        np.save(path / f"{name}_sparse.npy", np.concatenate(ids, axis=1))
    return dense, labels, ids


def _read(source: NpyInput) -> list[RawPiece]:
    return [task.read() for task in source.tasks()]


def _equal(pieces: list[RawPiece], dense: np.ndarray, labels: np.ndarray, ids: list[np.ndarray]) -> None:
    assert np.array_equal(np.concatenate([p.dense_IN.T for p in pieces]), dense)
    assert np.array_equal(np.concatenate([p.labels_N for p in pieces]), labels.reshape(-1))
    for f, array in enumerate(ids):
        values = np.concatenate([p.sparse[f].values for p in pieces])
        assert np.array_equal(values, array.reshape(-1))
        assert values.dtype == np.uint32


def test_a_directory_is_its_triplets_in_natural_order(tmp_path: Path):
    days = {name: _save(tmp_path, name, 5, seed=i) for i, name in enumerate(["day_10", "day_2", "day_0"])}
    source = NpyInput([tmp_path])
    assert [file.name for file in source.sources] == ["day_0", "day_2", "day_10"]
    assert [feature.max_ids for feature in source.sparse] == [1, 1, 1]
    assert all(feature.as_rows for feature in source.sparse)
    pieces = _read(source)
    for piece, name in zip(pieces, ["day_0", "day_2", "day_10"], strict=True):
        _equal([piece], *days[name])
        assert piece.lines_N.tolist() == [1, 2, 3, 4, 5]


def test_torchrecs_own_files_are_read(tmp_path: Path):
    criteo = pytest.importorskip("torchrec.datasets.criteo")
    lines = ["\t".join(["1", *(str(i) for i in range(13)), *(f"{f * 1000:08x}" for f in range(26))])] * 3
    (tmp_path / "day_0").write_text("\n".join([*lines, ""]))
    names = [str(tmp_path / f"day_0_{part}.npy") for part in ("dense", "sparse", "labels")]
    criteo.BinaryCriteoUtils.tsv_to_npys(str(tmp_path / "day_0"), *names)
    [piece] = _read(NpyInput(names))
    assert np.array_equal(piece.dense_IN, np.load(names[0]).T)
    assert [column.values[0] for column in piece.sparse] == [f * 1000 for f in range(26)]
    assert piece.labels_N.tolist() == [1, 1, 1]


@pytest.mark.parametrize("packed", [False, True])
def test_multi_hot_archives_are_read_packed_and_not(tmp_path: Path, packed: bool):
    expected = _save(tmp_path, "day_0", 100, multi_hot=True, packed=packed)
    source = NpyInput([tmp_path], piece_rows=7)
    assert tuple(feature.max_ids for feature in source.sparse) == HOT
    pieces = _read(source)
    assert len(pieces) == 15
    _equal(pieces, *expected)
    assert [p.sparse[0].lengths_N.tolist() for p in pieces][:1] == [[3] * 7]
    assert pieces[0].sparse[1].lengths_N is None


@pytest.mark.parametrize("packed", [False, True])
def test_reading_goes_on_after_any_piece(tmp_path: Path, packed: bool):
    for seed, name in enumerate(["day_0", "day_1"]):
        _save(tmp_path, name, 20, multi_hot=True, packed=packed, seed=seed)
    source = NpyInput([tmp_path], piece_rows=6)
    tasks = list(source.tasks())
    contents = [task.read() for task in tasks]
    for at, task in enumerate(tasks):
        again = [later.read() for later in source.tasks(task.position)]
        assert [p.dense_IN.tolist() for p in again] == [p.dense_IN.tolist() for p in contents[at + 1 :]]
        assert [p.sparse[2].values.tolist() for p in again] == [p.sparse[2].values.tolist() for p in contents[at + 1 :]]
    assert tasks[-1].bytes_done == sum(file.num_bytes for file in source.sources)


def test_nothing_of_an_archive_is_read_before_its_turn(tmp_path: Path):
    _save(tmp_path, "day_0", 50, multi_hot=True)
    path = tmp_path / "day_0_sparse_multi_hot.npz"
    with zipfile.ZipFile(path) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    first, *_, last = NpyInput([tmp_path], piece_rows=10).tasks()
    array = open_npz(path)["2"]
    os.truncate(path, array.start + 10 * 2 * array.dtype.itemsize)
    assert len(first.read()) == 10
    with pytest.raises(DataError, match="array 2: the file is cut short after row 40"):
        last.read()


def test_wrong_values_are_left_out_and_named(tmp_path: Path):
    dense, labels, ids = _save(tmp_path, "day_0", 6)
    dense[1, 2], dense[2, 0], labels[3], ids[1][4] = np.nan, 2e38, -1, -5
    np.save(tmp_path / "day_0_dense.npy", dense)
    np.save(tmp_path / "day_0_labels.npy", labels)
    np.save(tmp_path / "day_0_sparse.npy", np.concatenate(ids, axis=1))
    [piece] = _read(NpyInput([tmp_path]))
    assert piece.lines_N.tolist() == [1, 6]
    reasons = ["dense value not finite", "too large", "label not 0 or 1", "negative id"]
    assert [(bad.line, bad.reason) for bad in piece.bad] == list(zip([2, 3, 4, 5], reasons, strict=True))


def test_ids_can_be_values_instead_of_rows(tmp_path: Path):
    _save(tmp_path, "day_0", 6)
    np.save(tmp_path / "day_0_sparse.npy", np.full((6, 3), 2**40, dtype=np.int64))
    source = NpyInput([tmp_path], as_rows=False)
    assert [(feature.value_type, feature.as_rows) for feature in source.sparse] == [("<u8", False)] * 3
    assert _read(source)[0].sparse[0].values.tolist() == [2**40] * 6


def _without_partner(path: Path) -> None:
    (path / "day_0_labels.npy").unlink()


def _of_other_rows(path: Path) -> None:
    np.save(path / "day_0_labels.npy", np.zeros((5, 1), dtype=np.int32))


def _of_other_shape(path: Path) -> None:
    np.save(path / "day_0_dense.npy", np.zeros(6, dtype=np.float32))


def _of_fractions(path: Path) -> None:
    np.save(path / "day_0_sparse.npy", np.zeros((6, 3), dtype=np.float32))


def _of_objects(path: Path) -> None:
    np.save(path / "day_0_dense.npy", np.array([[{}]] * 6), allow_pickle=True)


def _by_column(path: Path) -> None:
    np.save(path / "day_0_sparse.npy", np.asfortranarray(np.zeros((6, 3), dtype=np.int32)))


def _no_array(path: Path) -> None:
    (path / "day_0_sparse.npy").write_bytes(b"1,2,3\n")


def _cut_short(path: Path) -> None:
    whole = (path / "day_0_sparse.npy").read_bytes()
    (path / "day_0_sparse.npy").write_bytes(whole[:-4])


def _two_kinds_of_ids(path: Path) -> None:
    np.savez(path / "day_0_sparse_multi_hot.npz", **{"0": np.zeros((6, 2), dtype=np.int32)})


def _other_keys(path: Path) -> None:
    (path / "day_0_sparse.npy").unlink()
    np.savez(path / "day_0_sparse_multi_hot.npz", ids=np.zeros((6, 2), dtype=np.int32))


def _no_archive(path: Path) -> None:
    (path / "day_0_sparse.npy").unlink()
    (path / "day_0_sparse_multi_hot.npz").write_bytes(b"PK\x03\x04 and then nothing")


def _other_features(path: Path) -> None:
    _save(path, "day_1", 6)
    np.save(path / "day_1_dense.npy", np.zeros((6, 9), dtype=np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_partner, "day_0_labels.npy: no such file"),
        (_of_other_rows, "6 rows, but .*day_0_labels.npy has 5"),
        (_of_other_shape, r"day_0_dense.npy: float32 of shape \[6\]"),
        (_of_fractions, "day_0_sparse.npy: float32 of shape .* expected integers"),
        (_of_objects, "day_0_dense.npy: an array of objects"),
        (_by_column, "column-major order"),
        (_no_array, "not a NumPy array"),
        (_cut_short, "day_0_sparse.npy: the file is cut short after row 5"),
        (_two_kinds_of_ids, "both day_0_sparse.npy and day_0_sparse_multi_hot.npz"),
        (_other_keys, "the keys are ids"),
        (_no_archive, "cut short or damaged"),
        (_other_features, "day_1: 9 dense and 3 sparse features, but day_0 has 4 dense"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, damage, message: str):
    _save(tmp_path, "day_0", 6)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        _read(NpyInput([tmp_path]))


def test_a_directory_without_triplets_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no file of a triplet") as error:
        NpyInput([tmp_path])
    assert "NAME_dense.npy" in str(error.value.hint)


def test_identity_changes_with_the_files_and_the_reading(tmp_path: Path):
    _save(tmp_path, "day_0", 6)
    first = NpyInput([tmp_path]).identity()
    assert NpyInput([tmp_path]).identity() == first
    assert NpyInput([tmp_path], as_rows=False).identity() != first
    np.save(tmp_path / "day_0_labels.npy", np.ones((6, 1), dtype=np.int64))
    assert NpyInput([tmp_path]).identity() != first
