"""How far a preparation is, in a small file that is replaced whole: what it says is on the disk already."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.files import io_errors, write_whole

_FORMAT = "dlrmctl-prepare/1"
_SHOWN = 80  # characters of a value that differs


class OtherPreparation(DataError):
    """What lies there was begun from other sources or with other options; it is left alone."""


class Journal:
    """The journal in a directory.

    Args:
        directory: of the unfinished preparation.
        task: what is prepared and how, as plain values for JSON; work that was begun for another task is refused.

    Attributes:
        state: what was last saved, changed in place before `save`; empty at the beginning.

    Raises:
        OtherPreparation: naming the first difference.
    """

    def __init__(self, directory: Path, task: Mapping[str, Any]) -> None:
        self._path = directory / "journal.json"
        self._task = json.loads(json.dumps({"format": _FORMAT, **task}))
        self.state: dict[str, Any] = {}
        if not self._path.exists():
            self.save()
            return
        with io_errors(self._path, "read"):
            content = json.loads(self._path.read_bytes())
        difference = _difference(content["task"], self._task)
        if difference:
            raise OtherPreparation(
                f"{directory}: begun with {difference}",
                f"give the same sources and options to continue it, or remove {directory} to start over",
            )
        self.state = content["state"]

    def save(self) -> None:
        """Brings `state` to the disk; what it vouches for must be there."""
        write_whole(self._path, json.dumps({"task": self._task, "state": self.state}).encode())


def _difference(old: Any, new: Any, where: str = "") -> str | None:
    """The first difference between two plain values, in words; None if they are equal."""
    if old == new:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        for key in (*old, *new):
            place = f"{where}.{key}" if where else key
            found = _difference(old.get(key), new.get(key), place)
            if found:
                return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, values in enumerate(zip(old, new, strict=True)):
            found = _difference(*values, f"{where}[{index}]")
            if found:
                return found
    if isinstance(old, list) and isinstance(new, list):
        return f"{len(old)} {where}, now {len(new)}"
    return f"{where} = {_short(old)}, now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
