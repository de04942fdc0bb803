"""Files of tensors as sources of tables to compress, and the choice of tables.

Tables are read one at a time, so that memory depends on the largest one only.
"""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlrmctl.console.console import warn
from dlrmctl.console.text import counted
from dlrmctl.errors import UserError
from dlrmctl.rundir.stored_tables import TableShape
from dlrmctl.settings.synonyms import nearest

ALL_TABLES = "*"
_SAFETENSORS_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    value_bytes: int  # 0 if not floating point


class TensorFiles:
    """Two-dimensional tensors of safetensors files, or of a state dict saved by torch.

    Args:
        path: a .safetensors, .pt, .pth or .bin file, or a directory of .safetensors files.
        patterns: comma-separated patterns of the tensors that are tables, such as "embeddings.*.weight". Tensors that
            are not floating point are skipped; with `ALL_TABLES`, also those that are not two-dimensional.

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
                            raise UserError(f"{path}: {self._files[name].name} and {file.name} both contain {name}")
                        part = stored.get_slice(name)
                        self._files[name] = file
                        found[name] = _Tensor(tuple(part.get_shape()), _SAFETENSORS_BYTES.get(part.get_dtype(), 0))
        else:
            self._loaded = _state_dict(path)
            for name, tensor in self._loaded.items():
                found[name] = _Tensor(tuple(tensor.shape), tensor.element_size() if tensor.is_floating_point() else 0)
        if not found:
            raise UserError(f"{path} contains no tensors")
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
        raise UserError(f"{path}: no tensor of --tables {patterns} is two-dimensional and floating point")
    for name in chosen:
        shape = found[name].shape
        if len(shape) != 2 or 0 in shape:
            problem = f"has shape {list(shape)}, but a table must be two-dimensional and not empty"
            raise UserError(f"{path}: {name} {problem}", "--tables PATTERN")
        if not name or "/" in name:
            raise UserError(f"{path}: the name {name!r} cannot be stored", "use names without /, or --tables PATTERN")
    integers = len(names) - len(floating)
    if integers:
        warn(f"{path}: skipped {counted(integers, 'tensor')} of other types than floating point")
    if len(chosen) < len(floating):
        warn(f"{path}: skipped {counted(len(floating) - len(chosen), 'tensor')} without two dimensions")
    return tuple(TableShape(name, *found[name].shape, found[name].value_bytes) for name in sorted(chosen))  # type: ignore[call-arg]


def _matching(names: Iterable[str], patterns: str, problem: str) -> set[str]:
    """The names that match one of the comma-separated patterns.

    Raises:
        UserError: if a pattern matches none; the message starts with `problem`.
    """
    known, chosen = sorted(names), set()
    for pattern in patterns.split(","):
        matching = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            near = nearest(pattern, known)
            there = f"the names are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
            raise UserError(f"{problem} {pattern!r}", f"did you mean {near!r}?" if near else there)
        chosen.update(matching)
    return chosen


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{path}: not a valid safetensors file: {problem}") from None


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file written by torch.save; does not run code from the file."""
    if not path.is_file():
        raise UserError(f"{path}: no such run, checkpoint or file of tensors")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch raises many types, for zip files, pickles and tensors
        raise UserError(
            f"{path} is neither a run nor a file of tensors written by torch.save or safetensors",
            "files with other objects than tensors are not opened, because they could run code",
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UserError(f"{path} contains a {type(content).__name__}, expected tensors by name")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def choose_tables(tables: Sequence[TableShape], patterns: str, min_rows: int) -> set[str]:
    """The names of tables that match one of the comma-separated patterns and have enough rows.

    Raises:
        UserError: if a pattern matches no table.
    """
    chosen = _matching((table.name for table in tables), patterns, "--tables matches no table:")
    return {table.name for table in tables if table.name in chosen and table.rows >= min_rows}
