"""Directories of compressed tables: written atomically, checked before use, and free of code.

OUT/manifest.json             what is inside: rules, bytes, checksums; plain JSON
    tables-00000.safetensors  parts of tables, called "TABLE/PART"
"""

import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dlrmctl.embeddings.compression.rules.rows import Compressed, from_parts

FORMAT = "dlrmctl-compressed/1"
_MANIFEST = "manifest.json"
_CHECKSUM = "crc32"  # over the rest of the manifest
_FILE_BYTES = 2**28
_OF_TABLE = {"rows": int, "dim": int, "rule": str, "spec": dict, "bytes": int, "file": str, "notes": dict}
_OF_FILE = {"bytes": int, "header_bytes": int, "crc32": int}
_KINDS = {int: "a whole number", str: "a string", dict: "an object"}


@dataclass(frozen=True)
class FileBytes:
    """Bytes of the files of the tables: of the tensors, of safetensors' headers, and of the manifest."""

    tensors: int
    headers: int
    manifest: int

    @property
    def total(self) -> int:
        return self.tensors + self.headers + self.manifest


class Writer:
    """Writes tables one at a time; a context manager that leaves a complete directory, or none.

        with Writer(path, source={...}) as writer:
            writer.add("cat_3", compressed, {"method": "int8"})

    Args:
        path: must not exist.
        source: plain values that describe what was compressed.
        file_bytes: tables are collected up to this size, and then written to a file.

    Attributes:
        directory: the directory being filled, inside the context; other files may be put there.

    Raises:
        ValueError: if `path` exists, or a name is repeated.
        OSError: if it cannot be written.
    """

    def __init__(self, path: Path, *, source: Mapping[str, Any], file_bytes: int = _FILE_BYTES) -> None:
        self.path = path
        if path.exists():
            raise ValueError(f"{path} already exists")
        self._source, self._file_bytes = dict(source), file_bytes
        self._tables: dict[str, dict[str, Any]] = {}
        self._files: dict[str, dict[str, int]] = {}
        self._waiting: dict[str, Tensor] = {}
        self._sealed = False

    def __enter__(self) -> "Writer":
        self.directory = begin_directory(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                if not self._sealed:
                    self.seal()
                publish(self.directory, self.path)
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def add(self, name: str, table: Compressed, notes: Mapping[str, Any] | None = None) -> None:
        """Adds a table, with `notes`: plain values about it, such as the method and its quality."""
        _check_name(name)
        if name in self._tables:
            raise ValueError(f"table name {name!r} must be new")
        self._waiting |= {f"{name}/{part}": tensor.contiguous() for part, tensor in table.parts().items()}
        self._tables[name] = {
            "rows": table.num_rows,
            "dim": table.dim,
            "rule": table.rule,
            "spec": table.spec(),
            "bytes": table.num_bytes,
            "file": self._next_file(),
            "notes": dict(notes or {}),
        }
        if sum(tensor.nbytes for tensor in self._waiting.values()) >= self._file_bytes:
            self._flush()

    def add_tensors(self, file: str, tensors: Mapping[str, Tensor]) -> None:
        """Adds a file of plain tensors, such as "dense.safetensors"; its name must not begin with "tables-"."""
        if file in self._files or Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"file name {file!r} must be new and end in .safetensors")
        self._write(file, {name: tensor.contiguous() for name, tensor in tensors.items()})

    def _next_file(self) -> str:
        return f"tables-{sum(name.startswith('tables-') for name in self._files):05}.safetensors"

    def _flush(self) -> None:
        if self._waiting:
            self._write(self._next_file(), self._waiting)
            self._waiting = {}

    def _write(self, file: str, tensors: dict[str, Tensor]) -> None:
        path = self.directory / file
        save_tensors(tensors, path)
        with path.open("rb") as stream:
            header = 8 + int.from_bytes(stream.read(8), "little")
        self._files[file] = {"bytes": path.stat().st_size, "header_bytes": header, "crc32": _crc32(path)}

    def seal(self) -> FileBytes:
        """Writes the manifest after the last table, and returns the sizes of the files so far."""
        self._flush()
        content = {"format": FORMAT, "source": self._source, "tables": self._tables, "files": self._files}
        manifest = {**content, _CHECKSUM: _checksum(content)}
        path = self.directory / _MANIFEST
        path.write_text(json.dumps(manifest, indent=1) + "\n")  # the directory is new, nobody else uses it
        sync(path)
        self._sealed = True
        return _file_bytes(self._files, path)


class Artifact:
    """Compressed tables on disk; opening them reads all files and verifies their checksums.

    Args:
        path: a directory that a `Writer` made.

    Attributes:
        source: what was compressed.
        tables: name -> rows, dim, rule, spec, bytes, file, notes.

    Raises:
        ValueError: if it is missing, has another format, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / _MANIFEST).is_file():
            raise ValueError(f"{path} has no compressed tables, {_MANIFEST} is missing")
        try:
            manifest = json.loads((path / _MANIFEST).read_text())
        except (ValueError, RecursionError) as problem:
            raise ValueError(f"{path}: damaged: {_MANIFEST} cannot be read: {problem}") from None
        if not isinstance(manifest, dict) or "format" not in manifest:
            raise ValueError(f"{path}: damaged: {_MANIFEST} names no format")
        if manifest["format"] != FORMAT:
            raise ValueError(f"{path}: format {manifest['format']!r}, this version reads {FORMAT!r}")
        checksum = manifest.pop(_CHECKSUM, None)  # earlier versions wrote none
        if checksum is not None and checksum != _checksum(manifest):
            raise ValueError(f"{path}: edited or damaged: {_MANIFEST} does not match its checksum")
        try:
            _check_types(manifest)
        except ValueError as problem:
            raise ValueError(f"{path}: damaged: {_MANIFEST}: {problem}") from None
        self.source: dict[str, Any] = manifest["source"]
        self.tables: dict[str, dict[str, Any]] = manifest["tables"]
        self._files: dict[str, dict[str, int]] = manifest["files"]
        for file, entry in self._files.items():
            self._check(file, entry)

    def _check(self, file: str, entry: dict[str, int]) -> None:
        path = self.path / file
        if not path.is_file():
            raise ValueError(f"{self.path}: damaged: {file} is missing")
        if path.stat().st_size != entry["bytes"]:
            raise ValueError(f"{self.path}: damaged: {file} has {path.stat().st_size} bytes, expected {entry['bytes']}")
        if _crc32(path) != entry["crc32"]:
            raise ValueError(f"{self.path}: damaged: {file} does not match its checksum")

    def read(self, name: str) -> Compressed:
        """One table.

        Raises:
            ValueError: if there is no table of that name, or its parts do not match the manifest.
        """
        if name not in self.tables:
            raise ValueError(f"{self.path}: no table {name!r}, only {', '.join(self.tables)}")
        entry = self.tables[name]
        try:
            table = from_parts(entry["spec"], _of_table(self.read_tensors(entry["file"], name + "/"), name))
        except ValueError as problem:
            raise ValueError(f"{self.path}: table {name}: {problem}") from None
        if (table.num_rows, table.dim, table.num_bytes) != (entry["rows"], entry["dim"], entry["bytes"]):
            raise ValueError(f"{self.path}: damaged: table {name} does not match {_MANIFEST}")
        return table

    def read_tensors(self, file: str, prefix: str = "") -> dict[str, Tensor]:
        """Returns the tensors of a file whose names begin with `prefix`."""
        if file not in self._files:
            raise ValueError(f"{self.path}: damaged: {_MANIFEST} does not list {file}")
        try:
            with safe_open(self.path / file, framework="pt") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys() if name.startswith(prefix)}  # noqa: SIM118
        except SafetensorError as problem:
            raise ValueError(f"{self.path}: damaged: {file} cannot be read: {problem}") from None

    @property
    def file_bytes(self) -> FileBytes:
        """The sizes of the directory's files."""
        return _file_bytes(self._files, self.path / _MANIFEST)


def _checksum(manifest: Mapping[str, Any]) -> int:
    """Returns the CRC-32 of the content of a manifest, whatever its spaces and order."""
    return zlib.crc32(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())


def _check_types(manifest: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: naming the first entry that is missing, has another type, or names something outside.
    """
    _check_entries("", manifest, {"source": dict, "tables": dict, "files": dict})
    for name, table in manifest["tables"].items():
        _check_name(name)
        _check_entries(f"tables.{name}.", table, _OF_TABLE)
        if table["file"] not in manifest["files"]:
            raise ValueError(f"tables.{name}.file = {table['file']!r} is not among the files")
        if table["spec"].get("rule") != table["rule"]:
            raise ValueError(f"tables.{name}: rule is both {table['rule']!r} and {table['spec'].get('rule')!r}")
    for name, file in manifest["files"].items():
        _check_name(name)
        _check_entries(f"files.{name}.", file, _OF_FILE)


def _check_entries(where: str, entries: Any, kinds: Mapping[str, type]) -> None:
    if not isinstance(entries, dict):
        raise ValueError(f"{where or 'it'} must be an object")
    for name, kind in kinds.items():
        if type(entries.get(name)) is not kind:
            raise ValueError(f"{where}{name} must be {_KINDS[kind]}")
        if kind is int and entries[name] < 0:
            raise ValueError(f"{where}{name} must be at least 0")


def _check_name(name: str) -> None:
    """Checks that a name is that of a file in the directory."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a table or file")


def _file_bytes(files: Mapping[str, Mapping[str, int]], manifest: Path) -> FileBytes:
    headers = sum(entry["header_bytes"] for entry in files.values())
    return FileBytes(sum(entry["bytes"] for entry in files.values()) - headers, headers, manifest.stat().st_size)


def _of_table(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Returns the parts of one table, by their names in its rule."""
    return {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(name + "/")}


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def begin_directory(path: Path) -> Path:
    """Makes a hidden directory beside `path`, to be filled and passed to `publish`; the caller removes what is left.

    Raises:
        OSError: if it cannot be made.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir(parents=True)
    return partial


def publish(partial: Path, path: Path) -> None:
    """Renames a filled directory to its final name, once the disk has it.

    Raises:
        OSError: if the disk refuses.
    """
    sync(partial)
    partial.rename(path)
    sync(path.parent)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file with the permissions of the umask.

    Raises:
        OSError: if it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode  # safetensors makes files that only their owner can read
    try:
        save_file(dict(tensors), path)
    except SafetensorError as problem:
        said = re.search(r"\(os error (\d+)\)", str(problem))
        raise OSError(*((int(said[1]), os.strerror(int(said[1]))) if said else (f"{path}: {problem}",))) from None
    path.chmod(mode)
    sync(path)


def sync(path: Path) -> None:
    """Flushes a file, or the names in a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
