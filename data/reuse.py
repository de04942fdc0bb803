"""The encoders of one store, taken for another, so that ids mean the same in both."""

import shutil
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.files import io_errors
from data.manifest import read_manifest
from data.raw import Input, RawFeature
from data.vocabulary import AsRows, Hashing, encoder_entry, encoders_fingerprint, value_type, vocabulary_file


class ReusedEncoders:
    """The encoders of a store.

    Args:
        path: of the store.
        input: whose features are to be encoded.

    Raises:
        DataError: if there is no store, or its encoders do not fit the features.
    """

    def __init__(self, path: Path, input: Input) -> None:
        self._path = path
        entries = read_manifest(path).get("ids", {}).get("columns")
        if not entries:
            raise DataError(f"{path}: keeps no vocabulary, its rows were not made from raw values")
        self._entries = {entry["name"]: entry for entry in entries}
        for feature in input.sparse:
            self._check(feature)

    def fingerprint(self) -> str:
        """Depends on everything that gives values their rows."""
        return encoders_fingerprint(self._entries.values())

    def take(self, feature: RawFeature, largest: int, store: Path) -> Hashing | AsRows | np.dtype:
        """The encoder of a feature; of a vocabulary, which is copied into the new store, the type of its values.

        Args:
            feature: of the input.
            largest: its highest value, if its values are rows.
            store: directory of the new store.

        Raises:
            DataError: if a value lies outside its table, or the vocabulary changed.
        """
        entry = self._entries[feature.name]
        if entry["scheme"] == "hash":
            return Hashing(entry["rows"], entry["column"])
        if entry["scheme"] == "rows":
            if largest >= entry["rows"]:
                raise DataError(f"{feature.name}: row {largest:,} lies outside the {entry['rows']:,} of {self._path}")
            return AsRows(entry["rows"])
        dtype = value_type(entry)
        source, copy = self._path / entry["file"], store / vocabulary_file(feature.name, dtype)
        with io_errors(source, "read"), source.open("rb") as opened:
            with io_errors(copy, "write"), copy.open("wb") as file:
                shutil.copyfileobj(opened, file)
        if encoder_entry(store, feature.name, dtype)["crc32"] != entry["crc32"]:
            raise DataError(f"{source}: changed since it was prepared", "take the vocabulary of another store")
        return dtype

    def _check(self, feature: RawFeature) -> None:
        entry = self._entries.get(feature.name)
        if entry is None:
            raise DataError(f"{self._path}: knows no feature {feature.name!r}, only {', '.join(self._entries)}")
        if feature.as_rows != (entry["scheme"] == "rows"):
            kinds = ("values", "rows of tables") if feature.as_rows else ("rows of tables", "values")
            raise DataError(f"{self._path}: {feature.name} holds {kinds[0]} there, and {kinds[1]} here")
        if entry["scheme"] == "vocabulary" and value_type(entry) != np.dtype(feature.value_type):
            widths = 8 * value_type(entry).itemsize, 8 * np.dtype(feature.value_type).itemsize
            raise DataError(f"{self._path}: {feature.name} has values of {widths[0]} bits there, of {widths[1]} here")
