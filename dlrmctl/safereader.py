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


class SafeReader(dcp.FileSystemReader):
    """Reads the metadata through an unpickler that builds descriptions of tensors and nothing else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    _MODULES = (
        "torch.distributed.checkpoint.metadata",
        "torch.distributed.checkpoint.filesystem",
        "torch.distributed._shard",
        "torch.distributed.remote_device",
    )
    _NAMES = frozenset(
        {
            ("torch", "Size"),
            ("torch", "device"),
            ("torch.serialization", "_get_layout"),
            ("torch._C._distributed_c10d", "_remote_device"),
            ("pathlib", "PosixPath"),
            ("collections", "OrderedDict"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype | torch.memory_format):
            return getattr(torch, name)
        allowed = (module, name) in self._NAMES
        if allowed or any(module == known or module.startswith(known + ".") for known in self._MODULES):
            return super().find_class(module, name)
        raise UserError(
            f".metadata asks for {module}.{name}, which no checkpoint of ours holds", "do not trust this file"
        )
