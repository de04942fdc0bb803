"""Reads checkpoints without ever running what they contain.

torch.distributed.checkpoint loads tensors with `weights_only`, but unpickles its own `.metadata` without limits.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from dlrmctl.errors import UserError

_DISTRUST = "do not trust this file"


class SafeReader(dcp.FileSystemReader):
    """Reads the metadata through an unpickler that builds descriptions of tensors and nothing else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise UserError(f"{self.path}/.metadata does not describe a checkpoint", _DISTRUST)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the few names that describe tensors, each exactly: a prefix or a dotted name would open whole modules."""

    _NAMES = frozenset(
        {
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),
            ("torch", "Size"),
            ("torch.serialization", "_get_layout"),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            *(
                ("torch.distributed.checkpoint.metadata", name)
                for name in (
                    "ChunkStorageMetadata",
                    "Metadata",
                    "MetadataIndex",
                    "StorageMeta",
                    "TensorProperties",
                    "TensorStorageMetadata",
                    "_MEM_FORMAT_ENCODING",
                )
            ),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and "." not in name and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) in self._NAMES:
            return super().find_class(module, name)
        raise UserError(
            f".metadata asks for {module}.{name}, which no checkpoint of ours holds", "do not trust this file"
        )
