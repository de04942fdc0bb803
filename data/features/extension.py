"""Checks that a feature space extends an earlier one: same features, same ids, perhaps more of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.columns import ColumnEntry
from dlrmctl.data.features.kept_array import KeptArray
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.files import read_array
from dlrmctl.data.schema import RESERVED_ROWS

_VALUES = 1 << 20  # compared at a time
_HINT = (
    "prepare the new rows with --extend STORE, which adds new values, or --vocabulary-from STORE, where STORE is the "
    "data of the run"
)


def check_extends(new: FeatureSpace, old: FeatureSpace) -> None:
    """Checks that every id of an earlier feature space means the same in a new one.

    Raises:
        DataError: naming the first feature that differs.
    """
    _same_names("dense", new.schema.dense, old.schema.dense)
    _same_names("sparse", new.schema.keys, old.schema.keys)
    if not (new.columns and old.columns):
        if new.vocabulary_fingerprint() != old.vocabulary_fingerprint():
            raise DataError("ids of the new data mean something else than in the run", _HINT)
        return
    if new.values != old.values:
        raise DataError("values of the new data are identified by another rule than in the run", _HINT)
    assert new.directory is not None
    assert old.directory is not None
    for column, before in zip(new.columns, old.columns, strict=True):
        if moved := _moved(column, new.directory, before, old.directory):
            raise DataError(f"ids of {column.name} mean something else than in the run: {moved}", _HINT)


def rows_of_others(new: FeatureSpace, old: FeatureSpace) -> dict[str, np.ndarray]:
    """Returns the rows (int64, ascending) of each feature that belong to other values than in an earlier space.

    Features without such rows are omitted.

    Args:
        new: extends `old`, see `check_extends`.
    """
    found = {}
    for column, before in zip(new.columns, old.columns, strict=False):
        if column.reused is None or not isinstance(before.encoder, KeptArray):
            continue
        assert isinstance(column.encoder, KeptArray)
        assert new.directory is not None
        assert old.directory is not None
        places = column.reused.load(new.directory).astype(np.int64) - RESERVED_ROWS
        places = places[places < before.encoder.num_values]
        ours, theirs = (
            kept.load(directory)[places]
            for kept, directory in ((column.encoder, new.directory), (before.encoder, old.directory))
        )
        if (ours != theirs).any():
            found[column.name] = places[ours != theirs] + RESERVED_ROWS
    return found


def _same_names(kind: str, new: Sequence[str], old: Sequence[str]) -> None:
    if missing := [name for name in old if name not in new]:
        raise DataError(f"the new data lacks the {kind} feature {missing[0]} of the run")
    if unknown := [name for name in new if name not in old]:
        raise DataError(f"the run has no {kind} feature {unknown[0]}, which the new data has")
    if list(new) != list(old):
        raise DataError(f"the {kind} features have another order than in the run")


def _moved(new: ColumnEntry, directory: Path, old: ColumnEntry, old_directory: Path) -> str | None:
    """Returns what is different about the ids of a column; None if it extends the old one."""
    if new.scheme != old.scheme:
        return f"its scheme is {new.scheme}, not {old.scheme}"
    if not (isinstance(new.encoder, KeptArray) and isinstance(old.encoder, KeptArray)):
        grows = new.scheme == "rows" and new.rows >= old.rows
        return (
            None if grows or new.encoder == old.encoder else f"it has {new.rows:,} {new.scheme} rows, not {old.rows:,}"
        )
    count = old.encoder.num_values
    if new.encoder.num_values < count:
        return f"it has {new.rows:,} rows, not at least {old.rows:,}"
    if new.encoder.dtype != old.encoder.dtype:
        return "its values have another type"
    if new.encoder.num_values == count and new.encoder.crc32 == old.encoder.crc32:
        return None
    width = new.encoder.dtype.itemsize
    reused = np.empty(0, np.int64) if new.reused is None else new.reused.load(directory).astype(np.int64)
    for start in range(0, count, _VALUES):
        ours, theirs = (
            read_array(at / kept.file, kept.dtype, min(_VALUES, count - start), start * width)
            for at, kept in ((directory, new.encoder), (old_directory, old.encoder))
        )
        different = np.flatnonzero(ours != theirs)
        different = different[~np.isin(different + start + RESERVED_ROWS, reused)]
        if len(different):
            return f"row {RESERVED_ROWS + start + int(different[0]):,} belongs to another value"
    return None
