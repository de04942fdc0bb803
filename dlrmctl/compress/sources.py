"""Where the tables to compress come from: a checkpoint of a run, or files of tensors from elsewhere.

Tables are read one at a time, so that the largest decides the memory and not their sum.
"""

import fnmatch
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dlrmctl.checkpoint import read_state, verify
from dlrmctl.errors import UserError, nearest
from dlrmctl.safereader import SafeReader

# Where torch's reader of checkpoints finds that this process is alone, as it should be.
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


@dataclass(frozen=True)
class TableShape:
    """A table that can be read: its name, rows and columns."""

    name: str
    rows: int
    dim: int

    @property
    def num_bytes(self) -> int:
        """As float32, without optimizer state."""
        return 4 * self.rows * self.dim


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


class TensorFiles:
    """Two-dimensional tensors of safetensors files, or of a state dict that torch saved.

    Args:
        path: a .safetensors, .pt, .pth or .bin file, or a directory of .safetensors files.
        pattern: names of the tensors that are tables, such as "embeddings.*.weight".

    Raises:
        UserError: if a file cannot be read, or no name matches.
    """

    def __init__(self, path: Path, pattern: str) -> None:
        self.path = path
        self._files: dict[str, Path] = {}
        self._loaded: dict[str, Tensor] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        if path.is_dir() or path.suffix == ".safetensors":
            files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
            for file in files:
                with _safetensors(file) as stored:
                    for name in stored.keys():  # noqa: SIM118
                        self._files[name] = file
                        shapes[name] = tuple(stored.get_slice(name).get_shape())
        else:
            self._loaded = _state_dict(path)
            shapes = {name: tuple(tensor.shape) for name, tensor in self._loaded.items()}
        if not shapes:
            raise UserError(f"{path}: holds no tensors")
        found = {name: shape for name, shape in shapes.items() if fnmatch.fnmatchcase(name, pattern)}
        if not found:
            near = nearest(pattern, shapes)
            raise UserError(
                f"{path}: no tensor is called {pattern!r}",
                f"did you mean {near!r}?" if near else f"it holds {', '.join(sorted(shapes)[:5])}, ...",
            )
        for name, shape in found.items():
            if len(shape) != 2:
                raise UserError(
                    f"{path}: {name} has shape {list(shape)}, a table has rows and columns", "--tables PATTERN"
                )
        self.tables = tuple(TableShape(name, *shape) for name, shape in sorted(found.items()))

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
    names = [table.name for table in tables]
    chosen: set[str] = set()
    for pattern in patterns.split(","):
        found = fnmatch.filter(names, pattern)
        if not found:
            near = nearest(pattern, names)
            raise UserError(
                f"--tables {pattern!r} matches no table",
                f"did you mean {near!r}?"
                if near
                else f"there are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
            )
        chosen.update(found)
    return {table.name for table in tables if table.name in chosen and table.rows >= min_rows}
