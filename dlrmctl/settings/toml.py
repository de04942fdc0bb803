"""Reading and writing settings files.

The `run.toml` of a run holds its format and a checksum of its settings. A copy given to `--config` may be edited; the
file in the run directory may not.
"""

import json
import tomllib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from dlrmctl.data.files import write_whole
from dlrmctl.errors import UserError
from dlrmctl.settings.config import SECTIONS

FORMAT = "dlrmctl-run/1"  # of run.toml and of its directory
_CHECKSUM = "crc32"
# What runs did before these settings existed.
_EARLIER = {
    "model": {"dense_inputs": "raw", "wide": False, "interaction": "dot"},
    "optim": {"averaging": "none", "shampoo_schedule": "constant", "wide_start": "zero"},
}


def read_toml(path: Path) -> dict[str, Any]:
    """Reads the sections of a settings file.

    Raises:
        UserError: if the file cannot be read or is not TOML; the message names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory, expected a TOML file") from None
    except OSError as problem:
        raise UserError(f"{path}: cannot read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except tomllib.TOMLDecodeError as problem:
        raise UserError(f"{path}: not valid TOML: {problem}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid TOML: nested too deeply") from None
    except ValueError:
        raise UserError(f"{path}: not valid TOML: a number has too many digits") from None


def read_settings(path: Path) -> dict[str, Any]:
    """Reads the sections of a settings file that may have been edited.

    Raises:
        UserError: see `read_toml`; also if the file has another format.
    """
    return _as_now(*_sections(path))


def read_run_settings(path: Path) -> dict[str, Any]:
    """Reads the sections of the run.toml in a run directory.

    Raises:
        UserError: see `read_settings`; also if the file was edited or damaged.
    """
    sections, checksum = _sections(path)
    from_before = checksum is None and _is_of_a_run(sections, checksum)
    if checksum != _checksum(sections) and not from_before:
        raise UserError(
            f"{path}: edited or damaged: its settings do not match its checksum",
            "pass changed settings as flags, or pass an edited copy to train --config",
        )
    return _as_now(sections, checksum)


def write_settings(path: Path, sections: Mapping[str, Any]) -> None:
    """Writes the settings of a run with format and checksum, atomically.

    Raises:
        DataError: if the file cannot be written.
    """
    checksum = _checksum(tomllib.loads(tomli_w.dumps(sections)))
    write_whole(path, tomli_w.dumps({"format": FORMAT, _CHECKSUM: checksum, **sections}).encode())


def _sections(path: Path) -> tuple[dict[str, Any], Any]:
    """Returns the sections of a file and its checksum."""
    sections = read_toml(path)
    format = sections.pop("format", FORMAT)
    if format != FORMAT:
        raise UserError(
            f"{path}: the format is {format!r}, this version reads {FORMAT!r}", "use the version that wrote it"
        )
    return sections, sections.pop(_CHECKSUM, None)


def _is_of_a_run(sections: Mapping[str, Any], checksum: Any) -> bool:
    """Whether the file was written by a run: earlier versions wrote no checksum, but all sections and settings."""
    model = sections.get("model")
    complete = isinstance(model, dict) and {"bottom_mlp", "top_mlp"} <= model.keys()
    return checksum is not None or (complete and sections.keys() >= SECTIONS.keys())


def _as_now(sections: dict[str, Any], checksum: Any) -> dict[str, Any]:
    """Adds settings that runs of earlier versions did not have."""
    if _is_of_a_run(sections, checksum):
        for section, values in _EARLIER.items():
            if isinstance(sections.get(section), dict):
                sections[section] = values | sections[section]
        train = sections.get("train")
        if isinstance(train, dict) and train.pop("tensorboard", False):
            train["tracker"] = "tensorboard"
    return sections


def _checksum(sections: Mapping[str, Any]) -> int:
    """CRC-32 of the settings; depends on the order of tables, not on whitespace or comments."""
    return zlib.crc32(json.dumps(sections, default=str).encode())
