"""Reads the tensors of a checkpoint without torch.distributed.checkpoint and without running code from files.

`.metadata` is a pickle of tensor descriptions. It is read into plain records, which are checked; it has no access to
classes of torch. `__R_0.distcp` of rank R holds pieces of tensors, each as written by torch.save.
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dlrmctl.data.files import open_to_read, read_file
from dlrmctl.errors import UserError

METADATA = ".metadata"
_MOST_BYTES = 1 << 30
DISTRUST = "do not trust this file"
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}
_DTYPES |= {str(dtype): dtype for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)}
_DESCRIPTIONS = "torch.distributed.checkpoint.metadata"


@dataclass(frozen=True)
class Piece:
    """A part of a tensor: its offsets, its shape, and its bytes in a file of the checkpoint."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint; its pieces cover it."""

    name: str
    dtype: torch.dtype
    size: tuple[int, ...]
    pieces: tuple[Piece, ...]


def stored_tensors(checkpoint: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint, by name.

    Raises:
        UserError: if the metadata contains anything but tensors, or is inconsistent.
    """
    content = _Descriptions(io.BytesIO(read_file(checkpoint / METADATA, most=_MOST_BYTES))).load_descriptions()
    try:
        return _checked(content)
    except (AttributeError, TypeError, ValueError, LookupError, RecursionError) as problem:
        raise UserError(f"{checkpoint}/{METADATA} does not describe a checkpoint: {problem}", DISTRUST) from None


def read_tensor(checkpoint: Path, stored: StoredTensor) -> Tensor:
    """Reads a tensor from its pieces.

    Raises:
        UserError: if a piece does not match the metadata.
    """
    if len(stored.pieces) == 1:
        return _read_piece(checkpoint, stored, stored.pieces[0])
    whole = torch.empty(stored.size, dtype=stored.dtype)
    for piece in stored.pieces:
        region = tuple(slice(at, at + size) for at, size in zip(piece.offsets, piece.sizes, strict=True))
        whole[region] = _read_piece(checkpoint, stored, piece)
    return whole


def read_rows(checkpoint: Path, stored: StoredTensor, first: int, last: int) -> Tensor:
    """Reads the rows [first, last) of a tensor, from the pieces that have any of them.

    Raises:
        UserError: if a piece does not match the metadata.
    """
    rows = torch.empty((last - first, *stored.size[1:]), dtype=stored.dtype)
    for piece in stored.pieces:
        start, end = max(first, piece.offsets[0]), min(last, piece.offsets[0] + piece.sizes[0])
        if start < end:
            within = [slice(at, at + size) for at, size in zip(piece.offsets[1:], piece.sizes[1:], strict=True)]
            found = _read_piece(checkpoint, stored, piece)[start - piece.offsets[0] : end - piece.offsets[0]]
            rows[(slice(start - first, end - first), *within)] = found
    return rows


def _read_piece(checkpoint: Path, stored: StoredTensor, piece: Piece) -> Tensor:
    try:
        with open_to_read(checkpoint / piece.file) as file:
            content = io.BufferedReader(_Slice(file, piece.start, piece.length))
            tensor = torch.load(content, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many types, for zip files, pickles and tensors
        raise UserError(f"{checkpoint}/{piece.file}: cannot read {stored.name}", DISTRUST) from None
    if not isinstance(tensor, Tensor) or tensor.dtype != stored.dtype or tuple(tensor.shape) != piece.sizes:
        raise UserError(f"{checkpoint}/{piece.file}: {stored.name} does not match {METADATA}", DISTRUST)
    return tensor.detach()


class _Slice(io.RawIOBase):
    """A part of a file, as a file object."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        content = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


class _Record:
    """An object of the pickle: its attributes, or its state tuple."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple):
            self.state = state
        else:
            vars(self).update(state)


class _Descriptions(pickle.Unpickler):
    """Unpickles only an exact list of names: a prefix or a dotted name would give access to whole modules."""

    def load_descriptions(self) -> Any:
        """Unpickles the metadata.

        Raises:
            UserError: for any other name, or if it is not a pickle.
        """
        # New classes for each load: a pickle can set attributes of the classes that it uses.
        self._records = {
            name: type(name, (_Record,), {})
            for name in ("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")
        }
        self._records |= {name: type(name, (_Record,), {}) for name in ("TensorStorageMetadata", "_StorageInfo")}
        try:
            return self.load()
        except UserError:
            raise
        except Exception as problem:  # pickle raises many types for invalid bytes
            raise UserError(f"{METADATA}: cannot read: {type(problem).__name__}", DISTRUST) from None

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and f"torch.{name}" in _DTYPES:
            return _DTYPES[f"torch.{name}"]
        home = "torch.distributed.checkpoint.filesystem" if name == "_StorageInfo" else _DESCRIPTIONS
        if module == home and name in self._records:
            return self._records[name]
        values = {
            ("collections", "OrderedDict"): lambda *items: dict(*items),
            ("pathlib", "PosixPath"): lambda *parts: "/".join(map(str, parts)),
            ("torch", "Size"): lambda sizes: tuple(sizes),
            ("torch.serialization", "_get_layout"): lambda layout: layout,
            (_DESCRIPTIONS, "_MEM_FORMAT_ENCODING"): lambda number: number,
        }
        if (module, name) in values:
            return values[module, name]
        raise UserError(f"{METADATA} refers to {module}.{name}, which checkpoints do not contain", DISTRUST)


def _checked(content: Any) -> dict[str, StoredTensor]:
    places: dict[tuple[str, tuple[int, ...]], Any] = {}
    for index, place in content.storage_data.items():
        places[index.fqn, _sizes(index.offset)] = place
    found = {}
    for name, entry in _of(content.state_dict_metadata, Mapping).items():
        size, dtype = _sizes(entry.size), entry.properties.state[0]
        if dtype not in _DTYPES.values():
            raise ValueError(f"{name} has dtype {dtype}")
        pieces = tuple(_piece(name, size, dtype, chunk, places) for chunk in _of(entry.chunks, Sequence))
        if sum(_count(piece.sizes) for piece in pieces) != _count(size):
            raise ValueError(f"the pieces of {name} do not cover it")
        found[_of(name, str)] = StoredTensor(name, dtype, size, pieces)
    return found


def _piece(
    name: str,
    size: tuple[int, ...],
    dtype: torch.dtype,
    chunk: Any,
    places: Mapping[tuple[str, tuple[int, ...]], Any],
) -> Piece:
    offsets, sizes = _sizes(chunk.offsets), _sizes(chunk.sizes)
    if any(at + length > whole for at, length, whole in zip(offsets, sizes, size, strict=True)):
        raise ValueError(f"a piece of {name} lies outside it")
    place = places[name, offsets]
    file, start, length = _of(place.relative_path, str), _of(place.offset, int), _of(place.length, int)
    if Path(file).name != file or min(start, length) < 0 or getattr(place, "transform_descriptors", None):
        raise ValueError(f"{name} starts at {start} in {file!r}")
    if length < _count(sizes) * dtype.itemsize:
        raise ValueError(f"{name} has more values than bytes")
    return Piece(offsets, sizes, file, start, length)


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = _of(value, tuple)
    if any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError(f"{sizes} is not a shape")
    return tuple(sizes)


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def _count(sizes: tuple[int, ...]) -> int:
    count = 1
    for size in sizes:
        count *= size
    return count
