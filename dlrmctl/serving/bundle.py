"""A bundle: one file with all that turns raw rows into probabilities.

It is a zip file whose members are not packed and begin at multiples of 64 bytes, so that tables and vocabularies are
used where they lie:

    bundle.json      format, features, steps of the program, the other members and their checksums
    arrays/0, ...    weights, tables, vocabularies

Its own checksum is the last field of `bundle.json`; the checksums of all other members are in it.
"""

import json
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from dlrmctl.serving.errors import BundleError

FORMAT = "dlrmctl-bundle/1"
MANIFEST = "bundle.json"
ALIGNMENT = 64
SUFFIX = ".dlrm"
MOST_READ = 1 << 28  # bytes of a file that is read; a larger one is mapped
_CHECKSUM = "crc32"
_LOCAL_HEADER = struct.Struct("<26xHH")
_AT_A_TIME = 1 << 20  # bytes of a mapped file whose checksum is taken at a time
_AGAIN = "export it again"


@dataclass(frozen=True)
class Bundle:
    """An open bundle.

    Attributes:
        path: the file.
        content: of `bundle.json`.
        arrays: in the order of the manifest; they must not be written to.
        mapped: whether they are mapped, not read.
    """

    path: Path
    content: Mapping[str, Any]
    arrays: Sequence[np.ndarray]
    mapped: bool


def seal(content: Mapping[str, Any]) -> bytes:
    """Returns the content of `bundle.json` with its checksum."""
    plain = {key: value for key, value in content.items() if key != _CHECKSUM}
    return json.dumps({**plain, _CHECKSUM: _sum_of(plain)}).encode()


def _sum_of(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def open_bundle(path: Path | str, *, verify: bool = True, map_above: int = MOST_READ) -> Bundle:
    """Opens a bundle.

    Args:
        path: the file.
        verify: whether to take the checksum of every member; otherwise only of `bundle.json`.
        map_above: a file of more bytes is mapped into memory. It must not be changed in place while it is used;
            replacing it by another file (`mv`) is safe.

    Raises:
        BundleError: if it cannot be read, or is something else, damaged, or of another version.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            mapped = os.fstat(file.fileno()).st_size > map_above
            if mapped:
                # Private: torch takes arrays that can be written to, and nothing is written to the file.
                whole = np.frombuffer(mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE), np.uint8)
            else:
                whole = np.fromfile(file, np.uint8)
            places = _places(file, path)
            content = _manifest(path, whole, places)
            arrays = []
            for number, entry in enumerate(content["arrays"]):
                start, length = places.get(f"arrays/{number}", (0, -1))
                dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
                if length != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
                    raise BundleError(f"{path}: damaged: arrays/{number} has another size; {_AGAIN}")
                part = whole[start : start + length]
                if verify and (_file_crc32(file, start, length) if mapped else zlib.crc32(part.data)) != entry["crc32"]:
                    raise BundleError(f"{path}: damaged: arrays/{number} does not match its checksum; {_AGAIN}")
                arrays.append(part.view(dtype).reshape(shape))
    except OSError as problem:
        raise BundleError(f"{path}: {problem.strerror or problem}") from None
    except (KeyError, TypeError) as problem:
        raise BundleError(f"{path}: damaged: {problem!r}; {_AGAIN}") from None
    return Bundle(path, content, arrays, mapped)


def _file_crc32(file: BufferedReader, start: int, length: int) -> int:
    """Reads a part of a mapped file, so that its pages do not count as memory of the process until they are used."""
    buffer, found = memoryview(bytearray(min(length, _AT_A_TIME))), 0
    file.seek(start)
    while length and (read := file.readinto(buffer[: min(length, len(buffer))])):
        found = zlib.crc32(buffer[:read], found)
        length -= read
    return found


def _places(file: Any, path: Path) -> dict[str, tuple[int, int]]:
    """Returns the start and the bytes of each member."""
    places = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise BundleError(f"{path}: not a bundle of dlrmctl: it is packed")
                file.seek(info.header_offset)
                name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                places[info.filename] = (info.header_offset + _LOCAL_HEADER.size + name + extra, info.file_size)
    except (zipfile.BadZipFile, struct.error, ValueError) as problem:
        if isinstance(problem, BundleError):
            raise
        raise BundleError(f"{path}: not a bundle of dlrmctl, or cut short: {problem}") from None
    return places


def _manifest(path: Path, whole: np.ndarray, places: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    if MANIFEST not in places:
        kind = "an exported graph without features" if any("model.json" in name for name in places) else "not a bundle"
        raise BundleError(f"{path}: {kind}; `dlrmctl export RUN -o model{SUFFIX}` makes a bundle")
    start, length = places[MANIFEST]
    try:
        content = json.loads(whole[start : start + length].tobytes())
        if content["format"] != FORMAT:
            raise BundleError(f"{path}: the format is {content['format']!r}, this version reads {FORMAT!r}; {_AGAIN}")
        if content.pop(_CHECKSUM) != _sum_of(content):
            raise BundleError(f"{path}: damaged: {MANIFEST} does not match its checksum; {_AGAIN}")
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        if isinstance(problem, BundleError):
            raise
        raise BundleError(f"{path}: damaged: {MANIFEST}: {problem!r}; {_AGAIN}") from None
    return dict(content)
