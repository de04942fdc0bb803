"""Directories that appear whole or not at all, and files of tensors in them with the modes of other files."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def begin_directory(path: Path) -> Path:
    """A new hidden directory beside `path`, to fill; then call `publish`, and remove what is left in any case.

    Raises:
        OSError: if it cannot be made.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir(parents=True)
    return partial


def publish(partial: Path, path: Path) -> None:
    """Gives a filled directory its name, once the disk has it.

    Raises:
        OSError: if the disk refuses.
    """
    sync(partial)
    partial.rename(path)
    sync(path.parent)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file that others may read as the umask says.

    Raises:
        OSError: if it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode  # safetensors would leave a file for its owner alone
    try:
        save_file(dict(tensors), path)
    except SafetensorError as problem:
        raise OSError(f"{path}: {problem}") from None
    path.chmod(mode)
    sync(path)


def sync(path: Path) -> None:
    """Waits until the disk has a file, or the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
