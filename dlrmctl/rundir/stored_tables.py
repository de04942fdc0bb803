"""Reading the embedding tables of a checkpoint, one at a time and without TorchRec."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dlrmctl.embeddings.largest import keep_largest
from dlrmctl.rundir.checkpoint import read_state, verify
from dlrmctl.rundir.tensor_files import read_tensor, stored_tensors


@dataclass(frozen=True)
class TableShape:
    """Name, rows and columns of a stored table, and the bytes per stored value."""

    name: str
    rows: int
    dim: int
    value_bytes: int = 4

    @property
    def num_bytes(self) -> int:
        """Number of bytes as float32, without optimizer state."""
        return 4 * self.rows * self.dim

    @property
    def stored_bytes(self) -> int:
        """Number of bytes as stored."""
        return self.value_bytes * self.rows * self.dim


class TableSource(Protocol):
    """Tables by name."""

    @property
    def tables(self) -> Sequence[TableShape]: ...

    def weight(self, name: str) -> Tensor:
        """float [rows, dim]."""
        ...

    def sums(self, name: str) -> Tensor | None:
        """float32 [rows], the state of row-wise AdaGrad, if any."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        ...


class CheckpointTables:
    """The tables of a checkpoint, written on any number of ranks; rows as the network saw them in training.

    Args:
        path: directory of the checkpoint; its tables are float32, or float16 if a GPU trained them so.

    Raises:
        UserError: if it is not a checkpoint, or one of its files is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, read_state(path)
        verify(path, 0, 1)
        self._stored = stored_tensors(path)
        self.tables = tuple(
            TableShape(name.removeprefix("tables.").removesuffix("/weight"), rows, dim, tensor.dtype.itemsize)
            for name, tensor in sorted(self._stored.items())
            if name.startswith("tables.") and name.endswith("/weight")
            for rows, dim in [tensor.size]
        )

    def weight(self, name: str) -> Tensor:
        stored, kept = self._read(f"tables.{name}/weight").float(), self.state.kept_numbers
        return stored if kept is None else keep_largest(stored, kept)

    def sums(self, name: str) -> Tensor | None:
        key = f"tables.{name}/sum"
        return self._read(key).reshape(-1) if key in self._stored else None

    def network(self) -> dict[str, Tensor]:
        """The dense parameters of the model, by name."""
        names = [name for name in self._stored if name.startswith("network.")]
        return {name.removeprefix("network."): self._read(name) for name in names}

    def wide(self) -> dict[str, Tensor]:
        """The first-order weights, float32 [rows] of each table, and the edges of buckets; empty if there are none."""
        names = [name for name in self._stored if name.startswith("wide.") and not name.endswith("/sum")]
        found = {name.removeprefix("wide."): self._read(name) for name in names}
        return {name: value[:, 0].clone() if name.endswith("/weight") else value for name, value in found.items()}

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


def model_weights(path: Path) -> dict[str, Tensor]:
    """Reads the weights of the model of a baseline, by name, from a checkpoint.

    Raises:
        UserError: if a file is missing or damaged.
    """
    verify(path, 0, 1)
    found = {name: tensor for name, tensor in stored_tensors(path).items() if name.startswith("model.")}
    return {name.removeprefix("model."): read_tensor(path, tensor) for name, tensor in found.items()}
