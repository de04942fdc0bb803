"""Finds the baseline of a data set among the runs; does not load torch."""

from dataclasses import dataclass
from pathlib import Path

from dlrmctl.data.errors import DataError
from dlrmctl.data.sealed import Values
from dlrmctl.errors import UserError
from dlrmctl.rundir.records import read_record


@dataclass(frozen=True)
class Baseline:
    """A finished baseline.

    Attributes:
        run: its directory.
        ne: its NE by split, of validation and test; None where it is not defined.
    """

    run: Path
    ne: dict[str, float | None]


def find_baseline(run: Path, data: str) -> Baseline | None:
    """The best baseline of the same data, by validation NE: among the directories beside a run, and those in runs/.

    Args:
        run: directory of a run.
        data: fingerprint of its data.
    """
    files = {file.resolve(): file for place in (run.parent, Path("runs")) for file in place.glob("*/results.json")}
    found = []
    for file in files.values():
        try:
            baseline = read_record(file, lambda values, file=file: _baseline_of(values, file.parent, data))  # type: ignore[misc]
        except (UserError, DataError):  # of another run, which is not this one's concern
            continue
        if baseline is not None:
            found.append(baseline)
    return min(found, key=lambda baseline: baseline.ne["validation"] or float("inf"), default=None)


def _baseline_of(values: Values, run: Path, data: str) -> Baseline | None:
    if not (values.has("solver") and values.has("data") and values.text("data") == data):
        return None
    splits = {split: values.inner(split) for split in ("validation", "test")}
    return Baseline(run, {split: found.number("ne") if found.has("ne") else None for split, found in splits.items()})
