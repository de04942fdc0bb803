"""Triplets of NumPy files: which files belong together, and whether their shapes do.

Beside NAME_dense.npy [N, I] and NAME_labels.npy [N, 1] stand the ids: NAME_sparse.npy [N, F], or
NAME_sparse_multi_hot.npz with an array [N, K] for each feature under the keys 0, 1, 2, ...
N examples, I dense features, F sparse features, K ids of a feature in every example.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.sources import expand_sources
from data.tables_npz import ArrayFile, open_npy, open_npz

_DENSE, _LABELS, _ONE_HOT, _MULTI_HOT = "_dense.npy", "_labels.npy", "_sparse.npy", "_sparse_multi_hot.npz"
_SUFFIXES = (_DENSE, _LABELS, _ONE_HOT, _MULTI_HOT)
_NAMES = "NAME_dense.npy, NAME_labels.npy and NAME_sparse.npy (or NAME_sparse_multi_hot.npz)"


@dataclass(frozen=True)
class Triplet:
    """The arrays of one name. Either one array of ids for all features, or one for each."""

    name: str
    dense: ArrayFile
    labels: ArrayFile
    ids: tuple[ArrayFile, ...]
    multi_hot: bool

    @property
    def rows(self) -> int:
        """N."""
        return self.labels.shape[0]

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of the three files."""
        return (self.dense.path, self.ids[0].path, self.labels.path)

    @property
    def hot(self) -> tuple[int, ...]:
        """K of every feature."""
        return tuple(array.shape[1] for array in self.ids) if self.multi_hot else (1,) * self.ids[0].shape[1]


def open_triplets(sources: Sequence[str | Path]) -> list[Triplet]:
    """The triplets of directories (all of them, day_2 before day_10) and of named files, in order.

    Raises:
        DataError: if there is none, one lacks a part, or the shapes do not fit each other.
    """
    found: dict[Path, set[str]] = {}
    for name in expand_sources(sources):
        path = Path(name)
        files = sorted(path.iterdir(), key=_natural) if path.is_dir() else [path]
        known = [file for file in files if file.name.endswith(_SUFFIXES)]
        if not known:
            raise DataError(f"{path}: {'no' if path.is_dir() else 'not a'} file of a triplet", f"these are {_NAMES}")
        for file in known:
            suffix = next(suffix for suffix in _SUFFIXES if file.name.endswith(suffix))
            found.setdefault(file.with_name(file.name.removesuffix(suffix)), set()).add(suffix)
    triplets = [_open(prefix, named) for prefix, named in found.items()]
    first = triplets[0]
    for other in triplets[1:]:
        if (other.dense.shape[1], other.hot) != (first.dense.shape[1], first.hot):
            raise DataError(f"{other.name}: {_features(other)}, but {first.name} has {_features(first)}")
    return triplets


def _open(prefix: Path, named: set[str]) -> Triplet:
    named_ids = named & {_ONE_HOT, _MULTI_HOT}
    if len(named_ids) == 2:
        one, other = (prefix.name + suffix for suffix in (_ONE_HOT, _MULTI_HOT))
        raise DataError(f"{prefix.parent}: both {one} and {other} hold ids", "name the files instead of the directory")
    paths = {suffix: prefix.with_name(prefix.name + suffix) for suffix in _SUFFIXES}
    ids = next(iter(named_ids)) if named_ids else _MULTI_HOT if paths[_MULTI_HOT].exists() else _ONE_HOT
    for suffix in (_DENSE, ids, _LABELS):
        if not paths[suffix].exists():
            raise DataError(f"{paths[suffix]}: no such file, which {prefix.name}{min(named)} needs", f"of {_NAMES}")
    if not named_ids and paths[_ONE_HOT].exists() and paths[_MULTI_HOT].exists():
        raise DataError(f"{prefix}: both {_ONE_HOT} and {_MULTI_HOT} are there", "name the one with the ids")
    dense, labels = open_npy(paths[_DENSE]), open_npy(paths[_LABELS])
    arrays = _features_of(paths[ids]) if ids == _MULTI_HOT else (open_npy(paths[ids]),)
    triplet = Triplet(prefix.name, dense, labels, arrays, ids == _MULTI_HOT)
    _check(triplet)
    return triplet


def _features_of(path: Path) -> tuple[ArrayFile, ...]:
    arrays = open_npz(path)
    keys = [str(f) for f in range(len(arrays))]
    if not arrays or set(arrays) != set(keys):
        shown = ", ".join(sorted(arrays, key=lambda key: _natural(Path(key)))[:5])
        raise DataError(f"{path}: the keys are {shown or 'none'}", "one array for each feature: 0, 1, 2, ...")
    return tuple(arrays[key] for key in keys)


def _check(triplet: Triplet) -> None:
    labels, rows = triplet.labels, triplet.labels.shape[0] if triplet.labels.shape else 0
    if labels.shape not in ((rows,), (rows, 1)) or labels.dtype.kind not in "biuf":
        raise DataError(f"{labels.name}: {_described(labels)}, expected numbers of shape [N, 1]")
    for array, kinds, what in (
        (triplet.dense, "iuf", "numbers"),
        *((array, "iu", "integers") for array in triplet.ids),
    ):
        if len(array.shape) != 2 or array.dtype.kind not in kinds:
            raise DataError(f"{array.name}: {_described(array)}, expected {what} of two dimensions")
        if array.shape[0] != rows:
            raise DataError(f"{array.name}: {array.shape[0]:,} rows, but {labels.name} has {rows:,}")
    if 0 in triplet.hot or not triplet.hot:
        raise DataError(f"{triplet.ids[0].name}: {_described(triplet.ids[0])}, a feature without ids")


def _described(array: ArrayFile) -> str:
    return f"{array.dtype} of shape {list(array.shape)}"


def _features(triplet: Triplet) -> str:
    hot = f", {sum(triplet.hot)} ids" if triplet.multi_hot else ""
    return f"{triplet.dense.shape[1]} dense and {len(triplet.hot)} sparse features{hot}"


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
