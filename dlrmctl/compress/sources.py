"""Where the tables to compress come from: a checkpoint of a run, or files of tensors from elsewhere.

Tables are read one at a time, so that the largest decides the memory and not their sum.
"""

import fnmatch
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlrmctl.checkpoint import read_state, verify
from dlrmctl.console import warn
from dlrmctl.errors import UserError, nearest
from dlrmctl.safereader import SafeReader

ALL_TABLES = "*"
# Where torch's reader of checkpoints finds that this process is alone, as it should be.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


@dataclass(frozen=True)
class TableShape:
    """A table that can be read: its name, rows and columns, and the bytes of each value where it is stored now."""

    name: str
    rows: int
    dim: int
    value_bytes: int = 4

    @property
    def num_bytes(self) -> int:
        """As float32, without optimizer state."""
        return 4 * self.rows * self.dim

    @property
    def stored_bytes(self) -> int:
        """As it is stored now."""
        return self.value_bytes * self.rows * self.dim


class TableSource(Protocol):
    """Tables by name."""

    @property
    def tables(self) -> Sequence[TableShape]: ...

    def weight(self, name: str) -> Tensor:
        """float [rows, dim]."""
        ...

    def sums(self, name: str) -> Tensor | None:
        """float32 [rows], the state of row-wise AdaGrad; None where there is none."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        ...


class CheckpointTables:
    """The tables of one of our checkpoints, however many ranks wrote it.

    Args:
        path: the checkpoint's directory.

    Raises:
        UserError: if it is not a checkpoint, or a file of it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, read_state(path)
        verify(path, 0, 1)
        entries = SafeReader(path).read_metadata().state_dict_metadata
        self._sizes: dict[str, tuple[int, ...]] = {name: tuple(entry.size) for name, entry in entries.items()}  # type: ignore[union-attr]
        self.tables = tuple(
            TableShape(name.removeprefix("tables.").removesuffix("/weight"), size[0], size[1])
            for name, size in sorted(self._sizes.items())
            if name.startswith("tables.") and name.endswith("/weight")
        )

    def weight(self, name: str) -> Tensor:
        return self._read([f"tables.{name}/weight"])[0]

    def sums(self, name: str) -> Tensor | None:
        key = f"tables.{name}/sum"
        return self._read([key])[0].reshape(-1) if key in self._sizes else None

    def network(self) -> dict[str, Tensor]:
        """The dense half of the model, by its own names."""
        names = [name for name in self._sizes if name.startswith("network.")]
        values = self._read(names)
        return {name.removeprefix("network."): value for name, value in zip(names, values, strict=True)}

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "checkpoint",
            "checkpoint": self.path.name,
            "settings": self.state["settings"],
            "data": self.state["data"],
            "vocabulary": self.state["vocabulary"],
        }

    def _read(self, names: Sequence[str]) -> list[Tensor]:
        tensors = {name: torch.empty(self._sizes[name]) for name in names}
        dcp.load(tensors, storage_reader=SafeReader(self.path), no_dist=True)
        return [tensors[name] for name in names]


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    value_bytes: int  # 0 for other than floating numbers


_SAFETENSORS_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


class TensorFiles:
    """Two-dimensional tensors of safetensors files, or of a state dict that torch saved.

    Args:
        path: a .safetensors, .pt, .pth or .bin file, or a directory of .safetensors files.
        patterns: comma-separated names of the tensors that are tables, such as "embeddings.*.weight". What is not of
            floating numbers is left out, and by `ALL_TABLES` what has not two dimensions too.

    Raises:
        UserError: if a file cannot be read, no name matches, or a tensor cannot be a table.
    """

    def __init__(self, path: Path, patterns: str) -> None:
        self.path = path
        self._files: dict[str, Path] = {}
        self._loaded: dict[str, Tensor] = {}
        found: dict[str, _Tensor] = {}
        if path.is_dir() or path.suffix == ".safetensors":
            files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
            for file in files:
                with _safetensors(file) as stored:
                    for name in stored.keys():  # noqa: SIM118
                        if name in self._files:
                            raise UserError(f"{path}: {self._files[name].name} and {file.name} both hold {name}")
                        part = stored.get_slice(name)
                        self._files[name] = file
                        found[name] = _Tensor(tuple(part.get_shape()), _SAFETENSORS_BYTES.get(part.get_dtype(), 0))
        else:
            self._loaded = _state_dict(path)
            for name, tensor in self._loaded.items():
                found[name] = _Tensor(tuple(tensor.shape), tensor.element_size() if tensor.is_floating_point() else 0)
        if not found:
            raise UserError(f"{path}: holds no tensors")
        self.tables = _tables_among(found, path, patterns)

    def weight(self, name: str) -> Tensor:
        if name in self._loaded:
            return self._loaded[name]
        with _safetensors(self._files[name]) as stored:
            tensor: Tensor = stored.get_tensor(name)
        return tensor

    def sums(self, name: str) -> Tensor | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"kind": "tensors", "file": self.path.name}


def _tables_among(found: Mapping[str, _Tensor], path: Path, patterns: str) -> tuple[TableShape, ...]:
    names = _matching(found, patterns, f"{path}: no tensor is called")
    floating = [name for name in names if found[name].value_bytes]
    chosen = [name for name in floating if len(found[name].shape) == 2] if patterns == ALL_TABLES else floating
    if not chosen:
        raise UserError(f"{path}: no tensor by --tables {patterns} has rows and columns of floating numbers")
    for name in chosen:
        shape = found[name].shape
        if len(shape) != 2 or 0 in shape:
            problem = f"has shape {list(shape)}, a table has rows and columns, at least one of each"
            raise UserError(f"{path}: {name} {problem}", "--tables PATTERN")
        if not name or "/" in name:
            raise UserError(f"{path}: the name {name!r} cannot be stored", "one without /; or --tables PATTERN")
    integers = len(names) - len(floating)
    if integers:
        warn(f"{path}: {integers:,} tensors are not of floating numbers, and left out")
    if len(chosen) < len(floating):
        warn(f"{path}: {len(floating) - len(chosen):,} tensors have not rows and columns, and are left out")
    return tuple(TableShape(name, *found[name].shape, found[name].value_bytes) for name in sorted(chosen))  # type: ignore[call-arg]


def _matching(names: Iterable[str], patterns: str, problem: str) -> set[str]:
    """The names that match one of the comma-separated patterns.

    Raises:
        UserError: if a pattern matches none; the message begins with `problem`.
    """
    known, chosen = sorted(names), set()
    for pattern in patterns.split(","):
        matching = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            near = nearest(pattern, known)
            there = f"there are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
            raise UserError(f"{problem} {pattern!r}", f"did you mean {near!r}?" if near else there)
        chosen.update(matching)
    return chosen


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{path}: cannot be read as safetensors: {problem}") from None


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote; nothing in it is run."""
    if not path.is_file():
        raise UserError(f"{path}: no such run, checkpoint or file of tensors")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch raises many kinds, for zip files, pickles and types alike
        raise UserError(
            f"{path}: is neither a run nor a file of tensors that torch.save or safetensors wrote",
            "a file that needs more than tensors to be read is not opened, because it could run code",
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected tensors by name")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def choose_tables(tables: Sequence[TableShape], patterns: str, min_rows: int) -> set[str]:
    """The names that match one of the comma-separated patterns and have enough rows.

    Raises:
        UserError: if a pattern matches no table.
    """
    chosen = _matching((table.name for table in tables), patterns, "--tables matches no table:")
    return {table.name for table in tables if table.name in chosen and table.rows >= min_rows}
