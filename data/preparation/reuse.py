"""Reuses the encoders of another store, so that ids mean the same in both."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.columns import ColumnEntry, columns_fingerprint
from dlrmctl.data.features.encoders import AsRows
from dlrmctl.data.features.kept_array import KeptArray
from dlrmctl.data.formats.raw import Input, RawFeature
from dlrmctl.data.store.manifest import PREPARE_AGAIN, read_manifest


class ReusedEncoders:
    """The encoders of a store.

    Args:
        path: the store.
        input: the input whose features are encoded.

    Raises:
        DataError: if there is no store, or its encoders do not fit the features.
    """

    def __init__(self, path: Path, input: Input) -> None:
        self._path = path
        preparation = read_manifest(path).preparation
        if preparation is None:
            raise DataError(f"{path} has no vocabulary: its rows were not made from raw values")
        self._columns = {column.name: column for column in preparation.columns}
        theirs, ours = ((schema.rule if schema else None) for schema in (preparation.table_schema, input.table_schema))
        if theirs != ours:
            raise DataError(
                f"{path}: its values are identified by another rule than those of {input.format}", PREPARE_AGAIN
            )
        self._values = ours
        for feature in input.sparse:
            self._check(feature)

    def fingerprint(self) -> str:
        """Depends on everything that determines the rows of values."""
        return columns_fingerprint(self._columns.values(), self._values)

    def take(self, feature: RawFeature, largest: int, store: Path) -> ColumnEntry:
        """Returns the encoder of a feature; a vocabulary with its texts is copied into the new store.

        Args:
            feature: the feature of the input.
            largest: its largest value, if its values are rows.
            store: directory of the new store.

        Raises:
            DataError: if a value is outside its table, or the vocabulary was changed.
        """
        column = replace(self._columns[feature.name], counts=None)
        encoder = column.encoder
        if isinstance(encoder, AsRows) and largest >= encoder.rows:
            raise DataError(f"{feature.name}: row {largest:,} is outside the {encoder.rows:,} of {self._path}")
        for kept in column.files:
            kept.copy(self._path, store)
        return column

    def _check(self, feature: RawFeature) -> None:
        entry = self._columns.get(feature.name)
        if entry is None:
            raise DataError(f"{self._path} has no feature {feature.name!r}, only {', '.join(self._columns)}")
        if feature.as_rows != isinstance(entry.encoder, AsRows):
            kinds = ("values", "rows of tables") if feature.as_rows else ("rows of tables", "values")
            raise DataError(f"{self._path}: {feature.name} holds {kinds[0]} there, and {kinds[1]} here")
        here = np.dtype(feature.value_type)
        if isinstance(entry.encoder, KeptArray) and entry.encoder.dtype != here:
            widths = 8 * entry.encoder.dtype.itemsize, 8 * here.itemsize
            raise DataError(f"{self._path}: {feature.name} has values of {widths[0]} bits there, of {widths[1]} here")
