"""The embedding tables of a checkpoint, read one at a time and without TorchRec."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dlrmctl.rundir.checkpoint import read_state, verify
from dlrmctl.rundir.tensor_files import read_tensor, stored_tensors


@dataclass(frozen=True)
class TableShape:
    """A table that can be read: its name, rows and columns, and the bytes of each value where it is stored now."""

    name: str
    rows: int
    dim: int
    value_bytes: int = 4

    @property
    def num_bytes(self) -> int:
        """Bytes as float32, without optimizer state."""
        return 4 * self.rows * self.dim

    @property
    def stored_bytes(self) -> int:
        """Bytes as stored."""
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
        self._stored = stored_tensors(path)
        self.tables = tuple(
            TableShape(name.removeprefix("tables.").removesuffix("/weight"), *tensor.size)
            for name, tensor in sorted(self._stored.items())
            if name.startswith("tables.") and name.endswith("/weight")
        )

    def weight(self, name: str) -> Tensor:
        return self._read(f"tables.{name}/weight")

    def sums(self, name: str) -> Tensor | None:
        key = f"tables.{name}/sum"
        return self._read(key).reshape(-1) if key in self._stored else None

    def network(self) -> dict[str, Tensor]:
        """The dense half of the model, by its own names."""
        names = [name for name in self._stored if name.startswith("network.")]
        return {name.removeprefix("network."): self._read(name) for name in names}

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "checkpoint",
            "checkpoint": self.path.name,
            "settings": self.state.settings,
            "data": self.state.data,
            "vocabulary": self.state.vocabulary,
        }

    def _read(self, name: str) -> Tensor:
        return read_tensor(self.path, self._stored[name])
