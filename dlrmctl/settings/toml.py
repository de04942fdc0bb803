"""Reading and writing settings files."""

import os
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from dlrmctl.errors import UserError

FORMAT = "dlrmctl-run/1"  # of run.toml, and of the directory that it stands in


def read_toml(path: Path) -> dict[str, Any]:
    """The sections of a settings file.

    Raises:
        UserError: if the file cannot be read or is not TOML; the message names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a directory, expected a TOML file") from None
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as problem:
        raise UserError(f"{path}: not valid TOML: {problem}") from None


def write_toml(path: Path, sections: dict[str, Any]) -> None:
    """Writes whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(tomli_w.dumps(sections).encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_settings(path: Path) -> dict[str, Any]:
    """The sections of a run's settings, or of a file that a person wrote, which need not name a format.

    Raises:
        UserError: as `read_toml`; if the file is of another version.
    """
    sections = read_toml(path)
    format = sections.pop("format", FORMAT)
    if format != FORMAT:
        raise UserError(
            f"{path}: the format is {format!r}, this version reads {FORMAT!r}", "use the version that wrote it"
        )
    return sections


def write_settings(path: Path, sections: dict[str, Any]) -> None:
    """Writes the sections of a run's settings with the format's name, whole or not at all."""
    write_toml(path, {"format": FORMAT, **sections})
