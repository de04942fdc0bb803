"""The keys of a TOML file: each of the type it must have, or one line that names it."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from data.errors import DataError

LARGEST_DENSE = 65504.0  # of float16


def nearest(word: str, known: Iterable[str]) -> str | None:
    """A hint with the known word that `word` probably meant, or None."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else None


@dataclass(frozen=True)
class Section:
    """A table of the file, and what stands before its keys in messages."""

    values: Mapping[str, Any]
    where: str

    def check_keys(self, known: Iterable[str], of: str = "a schema") -> None:
        for key in self.values:
            if key not in known:
                raise DataError(f"{self.where}{key} is not a key of {of}", nearest(key, known))

    def table(self, key: str) -> Mapping[str, Any]:
        return self._as(key, self.values.get(key, {}), dict, "a table of keys")

    def section(self, key: str) -> "Section":
        return Section(self.table(key), f"{self.where}{key}.")

    def text(self, key: str, default: str | None) -> str:
        if key not in self.values and default is None:
            raise DataError(f"{self.where}{key} is missing", f'say {key} = "..." with the name of a column')
        return self._as(key, self.values.get(key, default), str, "a text")

    def texts(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        values = self._as(key, self.values.get(key, list(default)), list, "a list of names")
        return tuple(self._as(key, value, str, "a list of names") for value in values)

    def words(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """One value or a list of them, each as the text of a file shows it."""
        value = self.values.get(key, list(default))
        found = value if isinstance(value, list) else [value]
        for item in found:
            if not isinstance(item, str | int | float):
                raise DataError(f"{self.where}{key} = {value!r} must be a value or a list of values")
        return tuple(str(item).lower() if isinstance(item, bool) else str(item) for item in found)

    def choice(self, key: str, default: str | None, choices: Iterable[str]) -> str | None:
        value = self.values.get(key, default)
        if value is not None and value not in choices:
            raise DataError(
                f"{self.where}{key} = {value!r} must be one of {', '.join(choices)}", nearest(str(value), choices)
            )
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_DENSE:
            raise DataError(f"{self.where}{key} = {value!r} must be a number, at most {LARGEST_DENSE:.0f}")
        return float(value)

    def character(self, key: str, default: str | None, *, empty: bool = False) -> str | None:
        value = self.values.get(key, default)
        if value is None or (value == "" and empty):
            return value
        if not isinstance(value, str) or len(value.encode()) != 1 or value in "\r\n":
            raise DataError(f"{self.where}{key} = {value!r} must be one character")
        return value

    def _as(self, key: str, value: Any, kind: type, what: str) -> Any:
        if type(value) is not kind:
            raise DataError(f"{self.where}{key} = {value!r} must be {what}")
        return value
