"""A served model as a file: exported by torch.export with a dynamic batch, written to a temporary file, and checked.

Dimensions: N rows, B examples of a batch.
"""

import io
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from dlrmctl.data.files import io_errors
from dlrmctl.errors import UserError
from dlrmctl.export import check, check_bundle
from dlrmctl.export.agreement import Inputs
from dlrmctl.export.graph import ServedModel
from dlrmctl.ranks.signals import terminable

METADATA = "dlrmctl.json"  # name inside the file
_EXAMPLES = 4  # rows for tracing; not 0 or 1, which torch would take for constants


@torch.no_grad()
def score(model: ServedModel, inputs: Inputs) -> np.ndarray:
    """Returns probabilities, float32 [N], computed in this process, in the batches of the check."""
    parts = check.batches(len(inputs.dense))
    scores = [model(*inputs.cut(part.start, part.stop).arguments()) for part in parts]
    return torch.cat(scores).numpy()


@torch.no_grad()
def to_program(model: ServedModel) -> torch.export.ExportedProgram:
    """Returns the model as a graph for batches of any size, and lists of any length up to the feature's."""
    batch = Dim("batch", min=1)
    shapes: list[Any] = [{0: batch}, {0: batch}]
    most = {feature.name: feature.max_ids for feature in model.features if feature.max_ids > 1}
    dense = torch.zeros(_EXAMPLES, model.num_dense)
    example = Inputs(
        dense,
        torch.zeros(_EXAMPLES, len(model.one_hot), dtype=torch.int64),
        {name: torch.zeros(_EXAMPLES, longest, dtype=torch.int64) for name, longest in most.items()},
        {name: torch.ones(_EXAMPLES, most[name]) for name in model.weighted},
    )
    lengths = {name: Dim(f"list_{i}", min=1, max=longest) for i, (name, longest) in enumerate(most.items())}
    named = (most, model.weighted)
    shapes += [{name: {0: batch, 1: lengths[name]} for name in names} for names in named if names]
    program = torch.export.export(model, example.arguments(), dynamic_shapes=tuple(shapes), strict=False)
    own_storage_of_empty(program.state_dict)
    for node in program.graph.nodes:  # source lines of nodes take half of the graph's bytes
        node.meta.pop("stack_trace", None)
        node.meta.pop("torch_fn", None)
    return program


def own_storage_of_empty(tensors: dict[str, Tensor]) -> None:
    """Gives tensors without elements a storage of their own.

    torch.export.save takes such a part of a larger storage, as it is read from a file, for one of negative size.
    """
    for name, tensor in tensors.items():
        if not tensor.numel():
            tensors[name] = torch.empty_like(tensor)


@contextmanager
def place_beside(out: Path) -> Iterator[Path]:
    """A temporary directory on the disk of `out`; it is removed at the end, also after SIGTERM.

    Raises:
        DataError: if it cannot be made there.
    """
    # Its name is known before it is made: a signal may come in between.
    place = out.parent / f"dlrmctl-export-{secrets.token_hex(8)}.partial"
    with terminable():
        try:
            with io_errors(out, "write"):
                place.mkdir(mode=0o700)
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def write_program(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Writes the program with its metadata as one file.

    Raises:
        OSError: if it cannot be written.
    """
    with path.open("wb", buffering=0) as file:
        target = _Remembering(file)
        torch.export.save(program, cast("IO[bytes]", target), extra_files={METADATA: json.dumps(metadata, indent=1)})
        if target.problem is not None:
            raise target.problem
        os.fsync(file.fileno())


class _Remembering(io.RawIOBase):
    """A file that remembers errors of the disk instead of raising them, over which torch's writer ends the process."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.problem: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def write(self, content: Any) -> int:
        size = memoryview(content).nbytes
        try:
            written = 0
            while self.problem is None and written < size:  # one call writes at most 2 GiB
                written += self._file.write(memoryview(content)[written:])
        except OSError as problem:
            self.problem = problem
        return size


def score_file(path: Path, inputs: Inputs) -> np.ndarray:
    """Returns probabilities, float32 [N], of the file, loaded by a new process that has only torch.

    Raises:
        UserError: if it cannot be loaded there.
    """
    found: np.ndarray = _in_new_process(check.__file__, path, inputs).numpy()
    return found


def score_bundle(
    path: Path, inputs: Inputs, rows: Sequence[Mapping[str, Any]], *, compiled: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities of inputs and logits of raw rows, float32, of a bundle in a new process.

    Args:
        compiled: whether to run its compiled code.

    Raises:
        UserError: if it cannot be loaded there, or refuses a row.
    """
    raw = json.dumps(rows, default=str)  # of dates and times: clients write them as strings
    probabilities, logits = _in_new_process(check_bundle.__file__, path, inputs, raw=raw, compiled=compiled)
    return probabilities.numpy(), logits.numpy()


def _in_new_process(script: str, path: Path, inputs: Inputs, **more: str | bool) -> Any:
    """Returns what a script saves of the rows, with the file."""
    rows, scores = path.with_name("rows.pt"), path.with_name("scores.pt")
    given = {"dense": inputs.dense, "ids": inputs.ids, "lists": inputs.lists, "weights": inputs.weights}
    torch.save(given | more, rows)
    command = [sys.executable, "-P", script, str(path), str(rows), str(scores)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{path.name}: torch alone could not score rows with the file: {reason}")
    return torch.load(scores, weights_only=True)
