"""Compressed tables in a directory: written whole or not at all, checked before use, never able to run code.

OUT/manifest.json             what is inside: rules, bytes, checksums; plain JSON
    tables-00000.safetensors  parts of tables, called "TABLE/PART"
"""

import json
import os
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
_FILE_BYTES = 2**28


@dataclass(frozen=True)
class FileBytes:
    """Bytes of the files of the tables: of tensors, of what safetensors writes before them, and of the manifest."""

    tensors: int
    headers: int
    manifest: int

    @property
    def total(self) -> int:
        return self.tensors + self.headers + self.manifest


class Writer:
    """Writes tables as they come; a context that leaves a complete directory, or none.

        with Writer(path, source={...}) as writer:
            writer.add("cat_3", compressed, {"method": "int8"})

    Args:
        path: must not exist.
        source: plain values that say what was compressed.
        file_bytes: tables are kept until they are this large together, and then written to a file.

    Attributes:
        directory: being filled, while the context lasts; other files may be put there.

    Raises:
        ValueError: if `path` exists, or a name comes twice.
        OSError: if it cannot be written.
    """

    def __init__(self, path: Path, *, source: Mapping[str, Any], file_bytes: int = _FILE_BYTES) -> None:
        self.path = path
        if path.exists():
            raise ValueError(f"{path} exists already")
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
        """Adds a table, with `notes`: plain values kept beside it, such as the method and its quality."""
        if name in self._tables or not name or "/" in name:
            raise ValueError(f"table name {name!r} must be new, not empty, and without /")
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
        """Writes the manifest after the last table, and says what the files take so far."""
        self._flush()
        manifest = {"format": FORMAT, "source": self._source, "tables": self._tables, "files": self._files}
        path = self.directory / _MANIFEST
        path.write_text(json.dumps(manifest, indent=1) + "\n")
        sync(path)
        self._sealed = True
        return _file_bytes(self._files, path)


class Artifact:
    """Compressed tables on disk; opening them reads all files and compares their checksums.

    Args:
        path: a directory that a `Writer` made.

    Attributes:
        source: what was compressed.
        tables: name -> rows, dim, rule, spec, bytes, file, notes.

    Raises:
        ValueError: if it is not there, of another format, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            manifest = json.loads((path / _MANIFEST).read_text())
            if manifest["format"] != FORMAT:
                raise ValueError(f"{path}: format {manifest['format']!r}, this version reads {FORMAT!r}")
            self.source: dict[str, Any] = manifest["source"]
            self.tables: dict[str, dict[str, Any]] = manifest["tables"]
            self._files: dict[str, dict[str, int]] = manifest["files"]
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"{path}: holds no compressed tables, {_MANIFEST} is missing") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as problem:
            raise ValueError(f"{path}: damaged: {_MANIFEST} cannot be read: {problem}") from None
        for file, entry in self._files.items():
            self._check(file, entry)

    def _check(self, file: str, entry: dict[str, int]) -> None:
        path = self.path / file
        if Path(file).name != file or not path.is_file():
            raise ValueError(f"{self.path}: damaged: {file} is missing")
        if path.stat().st_size != entry["bytes"]:
            raise ValueError(f"{self.path}: damaged: {file} has {path.stat().st_size} bytes, expected {entry['bytes']}")
        if _crc32(path) != entry["crc32"]:
            raise ValueError(f"{self.path}: damaged: {file} does not match its checksum")

    def read(self, name: str) -> Compressed:
        """One table.

        Raises:
            ValueError: if there is none of that name, or its parts are not what the manifest says.
        """
        if name not in self.tables:
            raise ValueError(f"{self.path}: no table {name!r}, only {', '.join(self.tables)}")
        entry = self.tables[name]
        try:
            table = from_parts(entry["spec"], _of_table(self.read_tensors(entry["file"], name + "/"), name))
        except ValueError as problem:
            raise ValueError(f"{self.path}: table {name}: {problem}") from None
        if (table.num_rows, table.dim, table.num_bytes) != (entry["rows"], entry["dim"], entry["bytes"]):
            raise ValueError(f"{self.path}: damaged: table {name} is not what {_MANIFEST} says")
        return table

    def read_tensors(self, file: str, prefix: str = "") -> dict[str, Tensor]:
        """The tensors of a file whose names begin with `prefix`."""
        if file not in self._files:
            raise ValueError(f"{self.path}: damaged: {_MANIFEST} does not list {file}")
        with safe_open(self.path / file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys() if name.startswith(prefix)}  # noqa: SIM118

    @property
    def file_bytes(self) -> FileBytes:
        """The sizes of the directory's files."""
        return _file_bytes(self._files, self.path / _MANIFEST)


def _file_bytes(files: Mapping[str, Mapping[str, int]], manifest: Path) -> FileBytes:
    headers = sum(entry["header_bytes"] for entry in files.values())
    return FileBytes(sum(entry["bytes"] for entry in files.values()) - headers, headers, manifest.stat().st_size)


def _of_table(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The parts of one table, by their names in its rule."""
    return {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(name + "/")}


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def begin_directory(path: Path) -> Path:
    """A new hidden directory beside `path`, to fill; then call `publish`, and remove what is left in any case.

    Raises:
        OSError: if it cannot be made.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir(parents=True)
    return partial


def publish(partial: Path, path: Path) -> None:
    """Gives a filled directory its name, once the disk has it.

    Raises:
        OSError: if the disk refuses.
    """
    sync(partial)
    partial.rename(path)
    sync(path.parent)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file that others may read as the umask says.

    Raises:
        OSError: if it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode  # safetensors would leave a file for its owner alone
    try:
        save_file(dict(tensors), path)
    except SafetensorError as problem:
        raise OSError(f"{path}: {problem}") from None
    path.chmod(mode)
    sync(path)


def sync(path: Path) -> None:
    """Waits until the disk has a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
