"""Which rows train, validate and test: the rule of a preparation, as given by the user and kept in the manifest."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.moments import parse_moment
from dlrmctl.data.sealed import Values

BY = ("order", "last-file", "random", "time", "group", "files")
BY_COLUMN = ("time", "group")
DRAWN = ("random", "group")
_HALVED = ("last-file", "files")  # take no fractions
_ROUNDING = 1e-6  # of the sum of fractions


@dataclass(frozen=True)
class Split:
    """A rule that gives each row to the training, validation or test split.

    Attributes:
        by: "order": the first rows train, the next ones validate, the last ones test.
            "last-file": all files but the last train, and its halves validate and test.
            "random": by a hash of the row's number among the good rows, and the seed.
            "time": the earliest rows train, the latest test; in each split rows are in the order of time, and rows of
            one moment are in one split.
            "group": by a hash of the row's value in a column and the seed, so that equal values are in one split. A
            row without a value is a group of its own.
            "files": each split has files of its own.
        column: of the times or groups.
        fractions: of training, validation and test; None is 6/7, 1/14, 1/14.
        until: the times at which training and validation end, these excluded, instead of fractions.
        sources: for "files", the number of training and of validation sources.
        seed: of the hash, for "random" and "group".
    """

    by: str = "order"
    column: str | None = None
    fractions: tuple[float, float, float] | None = None
    until: tuple[str, str] | None = None
    sources: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise DataError(f"splitting by {self.by!r} is not known: choose one of {', '.join(BY)}")
        if (self.column is not None) != (self.by in BY_COLUMN):
            raise DataError(f"splitting by {self.by} {'needs a' if self.by in BY_COLUMN else 'has no'} column")
        if (self.sources is not None) != (self.by == "files"):
            raise DataError("files of each split are counted if, and only if, splits have their own files")
        if self.fractions is not None:
            self._check_fractions(self.fractions)
        if self.until is not None:
            self._check_until(self.until)

    def _check_fractions(self, fractions: Sequence[float]) -> None:
        shown = ", ".join(f"{share:g}" for share in fractions)
        if self.by in _HALVED:
            raise DataError(f"fractions {shown} and splitting by {self.by} contradict: files decide")
        if self.until is not None:
            raise DataError(f"fractions {shown} and times at which splits end contradict", "omit one of them")
        if len(fractions) != 3:
            raise DataError(f"fractions {shown}: {len(fractions)} values, expected 3: train, validation, test")
        if not all(math.isfinite(share) and share > 0 for share in fractions):
            raise DataError(f"fractions {shown} must all be above 0")
        if abs(sum(fractions) - 1) > _ROUNDING:
            raise DataError(f"fractions {shown} add up to {sum(fractions):g}, expected 1")

    def _check_until(self, until: Sequence[str]) -> None:
        shown = ", ".join(until)
        if self.by != "time":
            raise DataError(f"times at which splits end ({shown}) need a split by time", "split by time:COLUMN")
        if len(until) != 2:
            hint = "the first ends the training split, the second the validation split"
            raise DataError(f"{shown}: {len(until)} times at which splits end, expected 2", hint)
        parsed = [parse_moment(text) for text in until]
        for text, moment in zip(until, parsed, strict=True):
            if moment is None:
                raise DataError(f"{text!r} is not a time", "write 2026-01-31, 2026-01-31T18:30:00, or a number")
        first, second = parsed
        assert first is not None
        assert second is not None
        if first[1] != second[1]:
            raise DataError(f"{shown}: one is a number, the other is not")
        if first[0] >= second[0]:
            raise DataError(f"{shown}: the first must be before the second", "training ends first, then validation")

    @property
    def name(self) -> str:
        """As on the command line: "order", "time:COLUMN"."""
        return self.by if self.column is None else f"{self.by}:{self.column}"

    @property
    def is_plain(self) -> bool:
        """Whether `name` says everything."""
        return self.to_dict().keys() <= {"by", "column"}

    @property
    def description(self) -> str:
        """A phrase for titles: "by time of 'visited', until 2026-01-20 and 2026-01-25"."""
        how = {
            "order": "in the order of the files",
            "last-file": "in the order of the files",
            "random": "at random",
            "time": f"by time of {self.column!r}",
            "group": f"by groups of {self.column!r}",
            "files": "from their own files",
        }[self.by]
        if self.fractions is not None:
            how += f", {', '.join(f'{share:g}' for share in self.fractions)}"
        return how if self.until is None else f"{how}, until {self.until[0]} and {self.until[1]}"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        if self.by not in DRAWN:
            del values["seed"]
        return values

    @classmethod
    def parse(cls, name: str, **more: Any) -> "Split":
        """Makes a rule from its `name` and the other attributes.

        Raises:
            DataError: if they are wrong or contradict.
        """
        by, mark, column = name.partition(":")
        return cls(by, column if mark else None, **more)

    @classmethod
    def from_values(cls, name: str, values: Values | None) -> "Split":
        """Parses what `to_dict` returned; `values` is None in stores of earlier versions, which have only the name."""
        if values is None:
            return cls.parse(name)
        entries = dict(values.entries)
        for key in ("fractions", "until", "sources"):
            if key in entries:
                entries[key] = tuple(entries[key])
        try:
            return cls(**entries)
        except TypeError as error:
            raise DataError(f"{values.where}not a split: {error}") from error


BY_ORDER = Split()
