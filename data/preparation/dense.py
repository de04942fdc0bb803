"""Fits the dense features over the training examples, and chooses the type that the store keeps each in.

N rows of a part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dlrmctl.data.features.dense import (
    KEY_TYPE,
    CountedKeys,
    FittedDense,
    count_keys,
    fit,
    float16_suffices,
    rounded_keys,
    to_values,
    weighted_sum,
)
from dlrmctl.data.preparation.counting import ValueCounter, merge_counts
from dlrmctl.data.preparation.parts import Parts
from dlrmctl.data.preparation.report import DenseReport
from dlrmctl.data.preparation.selection import Selection
from dlrmctl.data.sealed import Values
from dlrmctl.data.workers.pool import Alone, Shared, Workers


@dataclass(frozen=True)
class EncodedDense:
    """A dense feature as stored.

    Attributes:
        fitted: its statistics over the training examples.
        float32: whether it is stored as float32, else as float16.
        report: its report over all good rows.
    """

    fitted: FittedDense
    float32: bool
    report: DenseReport

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {"fitted": self.fitted.to_dict(), "float32": self.float32, "report": vars(self.report)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EncodedDense":
        """Parses what `to_dict` returned."""
        return cls(
            FittedDense.from_values(Values(values["fitted"])), values["float32"], DenseReport(**values["report"])
        )


class DenseFitter:
    """Counts the values of dense features, column by column, and fits them.

    Args:
        parts, selection: the rows, and which of them are training examples.
        work: directory for what does not fit into memory.
        workers: threads for parts, or processes for columns.
        most_in_memory: distinct values in memory at a time; affects only the speed.
    """

    def __init__(self, parts: Parts, selection: Selection, work: Path, workers: Workers, most_in_memory: int) -> None:
        self._parts, self._selection, self._workers = parts, selection, workers
        self._work, self._most = work, most_in_memory

    def fit(self, names: Sequence[str]) -> list[EncodedDense]:
        """Fits all columns, by name.

        Raises:
            DataError: if the disk is full.
        """
        if not self._workers.apart:
            return [self._fit(i, name) for i, name in enumerate(names)]
        alone = Shared(DenseFitter(self._parts, self._selection, self._work, Alone(), self._most))
        return list(self._workers.in_order(partial(_fit_alone, alone, i, name) for i, name in enumerate(names)))

    def _fit(self, i: int, name: str) -> EncodedDense:
        train, others = self._counter(f"{i}-train"), self._counter(f"{i}-others")
        missing_train = missing_others = 0
        for of_train, of_others in self._workers.in_order(partial(self._count, i, p) for p in range(len(self._parts))):
            train.add(*of_train[0])
            others.add(*of_others[0])
            missing_train += of_train[1]
            missing_others += of_others[1]
        fitted, float32 = fit(name, train.ranges, missing_train), self._parts.dense_type.itemsize == 4
        if float32 and float16_suffices(fitted, train.ranges, others.ranges):
            float32 = False
            train, others = self._rounded(train, f"{i}-rounded"), self._rounded(others, f"{i}-other-rounded")
            fitted = fit(name, train.ranges, missing_train)
        report = _report(name, (train, others), missing_train + missing_others)
        for counter in (train, others):
            counter.close()
        return EncodedDense(fitted, float32, report)

    def _count(self, i: int, part: int) -> tuple[tuple[CountedKeys, int], tuple[CountedKeys, int]]:
        """Returns the values of a part and the number of missing ones: of training examples, and of all other rows."""
        values_N, num_train = self._parts.dense_column(part, i), self._selection.train_rows[part]
        kept_N = self._selection.kept(part, num_train)
        if kept_N is None:
            return count_keys(values_N[:num_train]), count_keys(values_N[num_train:])
        train_N, later_N = values_N[:num_train], values_N[num_train:]
        (dropped, no_dropped), (later, no_later) = count_keys(train_N[~kept_N]), count_keys(later_N)
        return count_keys(train_N[kept_N]), (merge_counts([dropped, later]), no_dropped + no_later)

    def _rounded(self, counter: ValueCounter, name: str) -> ValueCounter:
        """Returns the counts of the same values as float16."""
        rounded = self._counter(name)
        for keys_K, counts_K in counter.ranges():
            rounded.add(*merge_counts([(rounded_keys(keys_K), counts_K)]))
        counter.close()
        return rounded

    def _counter(self, name: str) -> ValueCounter:
        return ValueCounter(KEY_TYPE, self._work / name, self._most)


def _fit_alone(fitter: Shared[DenseFitter], i: int, name: str) -> EncodedDense:
    return fitter.get()._fit(i, name)


def _report(name: str, counters: Sequence[ValueCounter], missing: int) -> DenseReport:
    def ranges() -> Iterator[CountedKeys]:
        for counter in counters:
            yield from counter.ranges()

    present = sum(int(counts_K.sum()) for _, counts_K in ranges())
    ends = [float(to_values(keys_K[[0, -1]])[end]) for keys_K, _ in ranges() if len(keys_K) for end in (0, 1)]
    return DenseReport(
        name,
        missing / (missing + present) if missing else 0.0,
        weighted_sum(ranges, lambda values_K: values_K) / present if present else 0.0,
        min(ends, default=0.0),
        max(ends, default=0.0),
    )
