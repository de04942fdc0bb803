"""The manifest of a store: what its files hold, and a checksum of itself.

Everything that reads a block trusts the manifest for shapes, and the model for the heights of its tables, so a manifest
that was edited or damaged is refused as a whole, with the first thing that is wrong.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors, write_whole
from dlrmctl.data.schema import Schema
from dlrmctl.data.source import SPLITS
from dlrmctl.data.store.layout import block_bytes, table_file

FORMAT = "dlrmctl-store/2"
MANIFEST = "manifest.json"
PREPARE_AGAIN = "prepare it again from the raw files"
_CHECKSUM = "crc32"
_KINDS = {int: "a whole number", str: "a text", dict: "an object"}
_SHOWN = 200  # characters of what is wrong
_Kind = TypeVar("_Kind", int, str, dict)


def split_file(split: str) -> str:
    """Name of the file with the blocks of a split."""
    return f"{split}.bin"


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the manifest of the store in the directory `path`, with the format's name and a checksum.

    Args:
        path: of the store.
        content: "schema", "block_rows", "splits", and whatever else is worth keeping; plain values for JSON.
    """
    manifest = json.loads(json.dumps({"format": FORMAT, **content}))
    manifest[_CHECKSUM] = _checksum(manifest)
    write_whole(path / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the store in the directory `path`.

    Raises:
        DataError: if there is none, it is of another version, or it is not as it was written.
    """
    how = "`prepare` makes a store from raw files"
    if not path.exists():
        raise DataError(f"{path}: there is no such directory", how)
    if not path.is_dir():
        raise DataError(f"{path}: a file, where a store is a directory", how)
    if not (path / MANIFEST).exists():
        raise DataError(f"{path}: no {MANIFEST}, so not a store, or one whose preparation did not finish", how)
    with io_errors(path / MANIFEST, "read"):
        content = (path / MANIFEST).read_bytes()
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path / MANIFEST}: damaged: {error}", PREPARE_AGAIN) from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise DataError(f"{path / MANIFEST}: not the manifest of a store", how)
    if manifest["format"] != FORMAT:
        found = _short(repr(manifest["format"]))
        raise DataError(f"{path / MANIFEST}: the format is {found}, this version reads {FORMAT!r}", PREPARE_AGAIN)
    try:
        _check(manifest)
    except DataError as error:
        raise DataError(f"{path / MANIFEST}: edited or damaged: {_short(error.message)}", PREPARE_AGAIN) from error
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> int:
    """CRC-32 of everything but the checksum; order and spaces do not count."""
    content = {key: value for key, value in manifest.items() if key != _CHECKSUM}
    return zlib.crc32(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _check(manifest: dict[str, Any]) -> None:
    """Raises:
    DataError: saying what is wrong, without the name of the file.
    """
    schema = Schema.from_dict(_take(manifest, "schema", dict))
    block_rows = _take(manifest, "block_rows", int)
    if block_rows < 1:
        raise DataError(f"block_rows = {block_rows} must be at least 1")
    splits = _take(manifest, "splits", dict)
    for split in SPLITS:
        _check_split(schema, block_rows, split, _take(splits, split, dict, "splits."))
    if _take(manifest, _CHECKSUM, int) != _checksum(manifest):
        raise DataError(f"its content does not match its checksum, {_CHECKSUM} = {manifest[_CHECKSUM]}")


def _check_split(schema: Schema, block_rows: int, split: str, entry: dict[str, Any]) -> None:
    where = f"splits.{split}."
    for name, file in (("file", split_file(split)), ("table", table_file(split))):
        if _take(entry, name, str, where) != file:
            raise DataError(f"{where}{name} = {entry[name]!r} must be {file!r}")
    examples, total = _take(entry, "examples", int, where), _take(entry, "bytes", int, where)
    if examples < 0:
        raise DataError(f"{where}examples = {examples} must be at least 0")
    low, high = _split_bytes(schema, block_rows, examples)
    if not low <= total <= high:
        takes = low if low == high else f"{low} to {high}"
        raise DataError(f"{where}bytes = {total}, but {examples} examples of the schema take {takes}")
    _take(entry, "table_crc32", int, where)


def _split_bytes(schema: Schema, block_rows: int, examples: int) -> tuple[int, int]:
    """The fewest and the most bytes of a split's blocks."""
    whole, rest = divmod(examples, block_rows)
    low, high = block_bytes(schema, block_rows)
    rest_low, rest_high = block_bytes(schema, rest)
    return whole * low + rest_low, whole * high + rest_high


def _take(values: dict[str, Any], name: str, kind: type[_Kind], where: str = "") -> _Kind:
    """An entry that must be there and of its type; true is no number."""
    if name not in values:
        raise DataError(f"{where}{name} is missing")
    value = values[name]
    if type(value) is not kind:
        raise DataError(f"{where}{name} = {value!r} must be {_KINDS[kind]}")
    return value


def _short(text: str) -> str:
    """One line that is not endless."""
    line = " ".join(text.encode(errors="backslashreplace").decode().split())
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "..."
