"""Writes and reads the tensors of all ranks with torch.distributed.checkpoint, which takes a second to load.

Reading is as safe as in `tensor_files`, which reads the metadata.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import WriteItem

from dlrmctl.rundir.tensor_files import StoredTensor, stored_tensors


class ExchangeError(Exception):
    """A rank could not write or read; `causes` holds its errors and their causes."""

    def __init__(self, failure: CheckpointException) -> None:
        causes: list[BaseException] = [failure_of_rank[0] for failure_of_rank in failure.failures.values()]
        self.causes = causes + [inner for c in causes for inner in (c.__cause__, c.__context__) if inner is not None]
        super().__init__(str(self.causes[0]))


def write_tensors(directory: Path, tensors: dict[str, Any], group: dist.ProcessGroup) -> None:
    """Writes the tensors of every rank. Every rank must call it.

    Raises:
        OSError, ExchangeError: if a rank cannot write.
    """
    # Copied ahead, each GPU tensor would be page-locked as a whole, and ranks on CPUs would start CUDA.
    writer = dcp.FileSystemWriter(directory, single_file_per_rank=True, sync_files=True, per_thread_copy_ahead=0)
    try:
        dcp.save(tensors, storage_writer=writer, planner=_WithoutCopies(), **_among(group))
    except CheckpointException as failure:
        raise ExchangeError(failure) from None


def fill_tensors(directory: Path, tensors: dict[str, Any], group: dist.ProcessGroup) -> None:
    """Fills tensors in place, written on any number of ranks. Every rank must call it.

    Raises:
        UserError: if a file cannot be trusted.
        ExchangeError: if the checkpoint does not contain these tensors.
    """
    # On a rank that has no part of a table, torch takes the checkpoint for one of an earlier version, in which an empty
    # dictionary, such as the state of SGD, has an entry of its own.
    tensors = {name: value for name, value in tensors.items() if value != {}}
    try:
        dcp.load(tensors, storage_reader=_Reader(directory), **_among(group))
    except CheckpointException as failure:
        raise ExchangeError(failure) from None


def _among(group: dist.ProcessGroup) -> dict[str, Any]:
    """Returns the arguments for these ranks; a single one would pickle its plan and read it again, for each message."""
    return {"process_group": group} if dist.get_world_size(group) > 1 else {"no_dist": True}


class _WithoutCopies(dcp.DefaultSavePlanner):
    """Passes tensors to the writer without copies.

    All tables of a rank are views of one buffer. torch's writer clones every view and keeps the clones until the file
    is closed, which would double the memory of all tables.
    """

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        found = super().transform_object(write_item, object)
        if isinstance(found, torch.Tensor) and found.device.type == "cpu" and found.is_contiguous():
            return torch.from_numpy(found.detach().numpy())
        return found


class _Reader(dcp.FileSystemReader):
    """Reads metadata with `tensor_files`; torch's own reader unpickles it without limits."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        stored = stored_tensors(Path(self.path))
        places = {
            MetadataIndex(tensor.name, piece.offsets, number): _StorageInfo(piece.file, piece.start, piece.length)
            for tensor in stored.values()
            for number, piece in enumerate(tensor.pieces)
        }
        described: dict[str, Any] = {name: _described(tensor) for name, tensor in stored.items()}
        return Metadata(described, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))


def _described(tensor: StoredTensor) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes)) for piece in tensor.pieces]
    return TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), torch.Size(tensor.size), chunks)
