"""What a preparation counts while it reads: lines, rows, repairs, bad lines, labels, and the dense values."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from data.errors import DataError
from data.raw import Input, RawPiece, unit_of

SHOWN_BAD_LINES = 10
_UNIT = 2.0**-24  # every finite float16 is a whole multiple of it, so that sums of them are exact as integers
with np.errstate(invalid="ignore"):
    _VALUES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
_FINITE = np.isfinite(_VALUES)
_UNITS = (np.where(_FINITE, _VALUES, 0.0) / _UNIT).astype(np.int64)


@dataclass
class SourceTally:
    """One source: lines, good rows, and rows labelled 1."""

    lines: int = 0
    rows: int = 0
    positives: int = 0


@dataclass
class Tally:
    """Counts of everything read so far.

    Attributes:
        sources: one each.
        repaired: rows whose line was mended, by what was mended.
        rejected: lines left out, by reason.
        examples: the first few of them: source, line, problem.
        largest: highest value of each feature whose values are rows, by name.
    """

    sources: list[SourceTally]
    repaired: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[int, int, str]] = field(default_factory=list)
    largest: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def lines(self) -> int:
        return sum(source.lines for source in self.sources)

    def add(self, input: Input, source: int, piece: RawPiece) -> None:
        """Counts a piece of a source."""
        of_source = self.sources[source]
        of_source.lines += len(piece) + len(piece.bad)
        of_source.rows += len(piece)
        of_source.positives += int(np.count_nonzero(piece.labels_N))
        self.repaired.update(piece.repaired)
        self.rejected.update(bad.reason for bad in piece.bad)
        room = SHOWN_BAD_LINES - len(self.examples)
        self.examples += [(source, bad.line, bad.problem) for bad in piece.bad[:room]]
        for feature, column in zip(input.sparse, piece.sparse, strict=True):
            if feature.as_rows:
                largest = int(column.values.max(initial=0))
                self.largest[feature.name] = max(self.largest.get(feature.name, 0), largest)

    def check_rejected(self, input: Input, limit: int | None) -> None:
        """Raises:
        DataError: naming the first bad line, if there are more than `limit`.
        """
        unit = unit_of(input.format)
        allowed = 100 + self.lines // 100 if limit is None else limit
        if self.rejected.total() > allowed:
            raise DataError(
                self.shown_examples(input)[0],
                f"{self.rejected.total():,} of the first {self.lines:,} {unit}s were rejected, at most {allowed:,} "
                f"were allowed; the file may be cut short or of another format; if not, allow more rejected {unit}s",
            )

    def shown_examples(self, input: Input) -> list[str]:
        """The first bad lines, as one line each."""
        unit = unit_of(input.format)
        return [f"{input.sources[source].name}, {unit} {line}: {problem}" for source, line, problem in self.examples]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        # asdict would count the pairs of a Counter.
        counters = {"repaired": dict(self.repaired), "rejected": dict(self.rejected)}
        return {**asdict(replace(self, repaired=Counter(), rejected=Counter())), **counters}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Tally":
        """The tally that `to_dict` described."""
        return cls(
            [SourceTally(**source) for source in values["sources"]],
            Counter(values["repaired"]),
            Counter(values["rejected"]),
            [(source, line, problem) for source, line, problem in values["examples"]],
            dict(values["largest"]),
        )


def dense_tally(values_N: np.ndarray, missing: float | None) -> list[int | float]:
    """How many float16 values are missing and how many are not, their sum in units of 2**-24, lowest and highest.

    The sum is exact, so that it does not depend on how the values are divided into pieces. At most 2**23 values.
    """
    counts = np.bincount(values_N.view(np.uint16), minlength=1 << 16)
    absent = 0
    if missing is not None:
        code = int(np.array([missing], np.float16).view(np.uint16)[0])
        absent, counts[code] = int(counts[code]), 0
    counts[~_FINITE] = 0
    seen = _VALUES[counts > 0]
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0)
    return [absent, int(counts.sum()), int(counts @ _UNITS), low, high]


def join_dense_tallies(tallies: Sequence[Sequence[int | float]]) -> tuple[int, int, float, float, float]:
    """Missing, not missing, mean, lowest and highest of all values; zeros where there is none."""
    absent, present, units = (int(sum(int(tally[i]) for tally in tallies)) for i in range(3))
    lows, highs = ([tally[i] for tally in tallies if tally[1]] for i in (3, 4))
    mean = units / present * _UNIT if present else 0.0
    return absent, present, mean, float(min(lows, default=0.0)), float(max(highs, default=0.0))
