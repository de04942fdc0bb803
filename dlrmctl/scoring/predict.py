"""Predicts probabilities for raw rows, in order and in bounded memory (`dlrmctl predict`)."""

import os
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from polars.io.plugins import register_io_source

from dlrmctl.console.console import output, say, warn
from dlrmctl.console.text import few
from dlrmctl.data.errors import DataError
from dlrmctl.data.features.space import GENERATED, FeatureSpace
from dlrmctl.data.formats.arrays import NpyInput
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.formats.raw import NO_LABEL, Input, unit_of
from dlrmctl.data.formats.table_schema import BY_TYPE, TableSchema, read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.new_rows import NewRows, cut_batches, read_new_rows
from dlrmctl.data.remote.outputs import check_writable_at, exists, new_file
from dlrmctl.data.remote.urls import is_remote
from dlrmctl.data.schema import MISSING_ROW, RARE_ROW
from dlrmctl.datasets.open import open_source
from dlrmctl.datasets.prepare import warn_of_lost_fields
from dlrmctl.datasets.values import known_values
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.opened import open_model, run_features
from dlrmctl.scoring.metrics import Metrics, StreamingMetrics, short_text
from dlrmctl.settings.config import Config
from dlrmctl.settings.toml import read_toml

SUFFIXES = (".parquet", ".csv")
SHOWN_BAD_LINES = 10
SUSPICIOUS = 20  # warn if at least this many values of a feature are all unknown
_UNLABELLED = "omit --labelled if the rows have no labels"
_COLUMNS = {"source": pl.String, "line": pl.Int64, "probability": pl.Float32, "label": pl.UInt8, "problem": pl.String}


@dataclass
class _Found:
    """Counts of the rows read so far.

    Args:
        unit: "row" or "line".
        labelled: whether the rows should have labels.
        max_bad_rows: allowed number of rows without a prediction; None allows 100 and 1 % of those read.
    """

    unit: str
    labelled: bool
    max_bad_rows: int | None
    rows: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    first_extra_fields: int = 0  # number of fields in the first bad line, minus the expected number
    values: Counter[int] = field(default_factory=Counter)
    known: Counter[int] = field(default_factory=Counter)

    def add(self, piece: NewRows) -> None:
        """Adds a piece.

        Raises:
            UserError: if more rows are bad than allowed.
        """
        self.rows += len(piece.block)
        for f, ids in enumerate(piece.block.ids_F):
            self.values[f] += int(np.count_nonzero(ids > MISSING_ROW))
            self.known[f] += int(np.count_nonzero(ids > RARE_ROW))
        self.repaired.update(piece.repaired)
        self.rejected.update(bad.reason for bad in piece.bad)
        room = SHOWN_BAD_LINES - len(self.examples)
        if piece.bad and not self.examples:
            self.first_extra_fields = piece.bad[0].extra_fields
        self.examples += [f"{piece.source}, {self.unit} {bad.line}: {bad.problem}" for bad in piece.bad[:room]]
        bad, read = self.rejected.total(), self.rows + self.rejected.total()
        allowed = 100 + read // 100 if self.max_bad_rows is None else self.max_bad_rows
        if bad > allowed:
            raise UserError(
                f"{bad:,} of the first {read:,} {self.unit}s cannot be read, at most {allowed:,} are allowed; "
                f"{self.examples[0]}",
                self.other_flag() or "--max-bad-rows N allows more; the output then names their problems",
            )

    def unknown(self, keys: Sequence[str]) -> list[str]:
        """Features that have values, none of them in the vocabulary."""
        return [name for f, name in enumerate(keys) if self.values[f] >= SUSPICIOUS and not self.known[f]]

    def refuse_other_kind(self) -> None:
        """Checks, after all rows were read, that they have labels or not as announced.

        Raises:
            UserError: if no row is good, or most rows contradict --labelled or --unlabelled.
        """
        if not self.rows:
            first = self.examples[0] if self.examples else "there are no rows"
            raise UserError(f"no good row; {first}", self.other_flag())
        bad = self.rejected.total()
        if bad > self.rows and (hint := self.other_flag()):
            raise UserError(f"{bad:,} of {self.rows + bad:,} {self.unit}s cannot be read; {self.examples[0]}", hint)

    def other_flag(self) -> str | None:
        """A hint if the first bad line has one field too many or too few, or most rows lack their label."""
        if self.labelled:
            without = sum(self.rejected[reason] for reason in NO_LABEL)
            return _UNLABELLED if self.first_extra_fields == -1 or 2 * without > self.rejected.total() else None
        return "use --labelled if the rows have labels" if self.first_extra_fields == 1 else None

    def warn(self, features: FeatureSpace) -> None:
        """Warns of problems that no single row shows."""
        keys = features.schema.keys
        warn_of_lost_fields(self.repaired, self.rows, [key for f, key in enumerate(keys) if not self.values[f]])
        if unknown := self.unknown(keys):
            its, is_it = ("its", "is it") if len(unknown) == 1 else ("their", "are they")
            known = known_values(features, unknown[0])
            of = f" of {unknown[0]}" if len(unknown) > 1 else ""
            such = f", which has {known}{of}" if known else ""
            warn(
                f"{few(unknown)}: none of {its} values is in the vocabulary of the model{such}; "
                f"{is_it} of the same type as in the training data, or new in all rows, like dates and row numbers?"
            )


def predict(
    config: Config,
    run: RunDirectory,
    ranks: Ranks,
    *,
    checkpoint: str,
    sources: Sequence[str],
    schema: Path | None,
    labelled: bool,
    out: Path | str,
    keep: Sequence[str] = (),
    max_bad_rows: int | None = None,
    from_data: bool = False,
    calibrated: bool = False,
) -> dict[str, Any]:
    """Scores the rows of the sources.

    Args:
        checkpoint: "best", "last" or "step-N".
        sources: files in the format of the training data.
        schema: of tables; None for the schema of the training data.
        labelled: whether the rows have labels, which adds metrics to the result.
        out: .parquet or .csv, here or at a URL; gets a row for every row of the sources, in order: source, line,
            probability, label if any, problem (why there is no probability), and the columns of `keep`.
        keep: columns of tables to copy to the output, besides those that the schema lists as `id`.
        max_bad_rows: allowed number of rows without a probability; None allows 100 and 1 % of those read.
        from_data: use vocabulary and transforms of the data that the settings name, not of the run.
        calibrated: whether to apply the calibration of the checkpoint.

    Returns:
        Counts of the rows, and metrics if there are labels.

    Raises:
        UserError, DataError: if something is missing or does not fit.
    """
    _check_output(out)
    features = open_source(config.data, verify=()).features if from_data else run_features(config, run)
    if features.input == GENERATED:
        raise UserError("synthetic data has no raw rows to score", "dlrmctl evaluate scores its splits")
    opened = open_model(config, run, ranks, checkpoint=checkpoint, features=features, calibrated=calibrated)
    given = _schema_of(features, schema)
    keep = list(dict.fromkeys([*(given.id if given else ()), *keep]))
    raw = _input(features, sources, given, labelled=labelled, keep=keep)
    kept = raw.kept_types if isinstance(raw, TableInput) else {}
    _check_kept(keep, out, kept)
    rows = read_new_rows(raw, features.encoders(), features.schema)
    found = _Found(unit_of(raw.format), labelled, max_bad_rows)
    weighted, grouped = raw.weight is not None, raw.group is not None
    metrics = StreamingMetrics(torch.device("cpu"), weighted=weighted, grouped=grouped)
    scored = _scored(rows, opened.model, features, config.train.batch_size, ranks, found, metrics)
    if ranks.is_main:
        _write(scored, out, _columns(labelled, kept))
        found.warn(features)
    else:  # every rank takes part in every batch
        deque(scored, maxlen=0)
    result: dict[str, Any] = {
        "out": str(out),
        "checkpoint": opened.checkpoint.name,
        "calibrated": calibrated,
        "rows": found.rows,
        "unit": found.unit,
        "repaired": dict(found.repaired),
        "rejected": dict(found.rejected),
        "examples": found.examples,
    }
    return result | ({"metrics": metrics.compute().to_dict()} if labelled else {})


def _check_output(out: Path | str) -> None:
    """Checks that a file can be written, and that there is none.

    Raises:
        UserError, DataError: if it cannot, or there is one.
    """
    if Path(out).suffix not in SUFFIXES:
        raise UserError(f"{out}: the name must end in {' or '.join(SUFFIXES)}")
    far = is_remote(str(out))
    if far:
        check_writable_at(str(out))
    if exists(str(out)) if far else Path(out).exists():
        raise UserError(f"{out} already exists", "choose another file, or remove this one")
    parent = Path(out).parent
    if not far and not parent.resolve().is_dir():
        raise UserError(f"{parent}: no such directory", f"mkdir -p {parent}")


def _input(
    features: FeatureSpace, sources: Sequence[str], schema: TableSchema | None, *, labelled: bool, keep: Sequence[str]
) -> Input:
    """Opens the sources in the format of the training data, or as tables with a schema."""
    format = features.input
    for name in keep:
        if name in _COLUMNS:
            raise UserError(f"--keep {name}: the output has a column of that name", "rename the column of the rows")
    if keep and schema is None and format in ("criteo", "npy"):
        raise UserError(
            f"--keep {','.join(keep)}: rows of format {format!r} have no other columns than the features",
            "the columns source and line identify rows",
        )
    if schema is not None:
        return _table(schema, sources, labelled=labelled, keep=keep, trained_on=format)
    if format == "criteo":
        return CriteoInput(sources, labelled=labelled)
    if format == "npy":
        return NpyInput(sources)
    if format is None:
        raise UserError(f"{features.directory} was not made from raw rows, so the format of new ones is unknown")
    raise UserError(f"{features.directory} was made from tables without keeping their schema", "--schema my.toml")


def _schema_of(features: FeatureSpace, given: Path | None) -> TableSchema | None:
    """The given schema of tables, or that of the training data."""
    if given is None:
        return features.table_schema
    rule = features.table_schema.values if features.table_schema else BY_TYPE
    return read_schema(read_toml(given), str(given), values=rule)


def _table(
    schema: TableSchema, sources: Sequence[str], *, labelled: bool, keep: Sequence[str], trained_on: str | None
) -> Input:
    try:
        table = TableInput(schema, sources, labelled=labelled, keep=keep, trained_on=trained_on)
    except DataError as problem:
        if labelled and problem.missing_column == schema.label:
            raise UserError(str(problem), _UNLABELLED) from None
        raise
    for doubt in table.doubts:
        warn(doubt)
    return table


def _scored(
    rows: Iterator[NewRows],
    inference: Any,
    features: FeatureSpace,
    batch_size: int,
    ranks: Ranks,
    found: _Found,
    metrics: StreamingMetrics,
) -> Iterator[pl.DataFrame]:
    """Yields every row of the pieces with its prediction or problem, in order.

    Batches are as large as in evaluation, so that the predictions of a row are the same.
    """
    offset = features.logit_offset()
    pieces = _Unscored(found.labelled)

    def blocks() -> Iterator[Any]:
        for piece in rows:
            found.add(piece)
            pieces.add(piece)
            if len(piece.block):
                yield piece.block

    for batch in cut_batches(blocks(), features.schema.keys, batch_size):
        on_device = batch.to(ranks.device)
        with torch.no_grad():  # for this call: polars may ask for the next frame from another thread
            logits_B = (inference(on_device.dense_BI, on_device) + offset)[: batch.num_valid].float().cpu()
        if found.labelled:
            metrics.add(batch, logits_B)
        yield from pieces.scored(logits_B.sigmoid().numpy())
    found.refuse_other_kind()
    yield from pieces.scored(np.empty(0, dtype=np.float32))  # pieces without a good row


class _Unscored:
    """Pieces whose probabilities are pending."""

    def __init__(self, labelled: bool) -> None:
        self._labelled = labelled
        self._waiting: deque[NewRows] = deque()
        self._probabilities = np.empty(0, dtype=np.float32)

    def add(self, piece: NewRows) -> None:
        self._waiting.append(piece)

    def scored(self, probabilities: np.ndarray) -> Iterator[pl.DataFrame]:
        """Yields the pieces that are complete with these probabilities, those of the next good rows."""
        self._probabilities = np.concatenate([self._probabilities, probabilities])
        while self._waiting and len(self._waiting[0].block) <= len(self._probabilities):
            piece = self._waiting.popleft()
            own, self._probabilities = np.split(self._probabilities, [len(piece.block)])
            yield self._frame(piece, own)

    def _frame(self, piece: NewRows, probabilities: np.ndarray) -> pl.DataFrame:
        good = pl.DataFrame({"line": piece.lines_N, "probability": probabilities, "label": piece.block.labels_N})
        bad = pl.DataFrame(
            {"line": [line.line for line in piece.bad], "problem": [line.problem for line in piece.bad]},
            schema={"line": pl.Int64, "problem": pl.String},
        )
        frame = pl.concat([good, bad], how="diagonal").sort("line").with_columns(source=pl.lit(piece.source))
        frame = frame.select(pl.col(name).cast(kind) for name, kind in _columns(self._labelled).items())
        if piece.kept is None:
            return frame
        kept = piece.kept.frame.with_columns(line=piece.kept.lines)
        return frame.join(kept, on="line", how="left", maintain_order="left")


def _columns(labelled: bool, kept: Mapping[str, pl.DataType] | None = None) -> dict[str, Any]:
    own = {name: kind for name, kind in _COLUMNS.items() if labelled or name != "label"}
    return own | dict(kept or {})


def _check_kept(keep: Sequence[str], out: Path | str, kinds: Mapping[str, pl.DataType]) -> None:
    """Checks the columns of `keep`.

    Raises:
        UserError: if a column cannot be written to the output.
    """
    for name in keep:
        if Path(out).suffix == ".csv" and kinds[name].is_nested():
            raise UserError(f"--keep {name}: a CSV file cannot hold {kinds[name]}", "-o FILE.parquet")


def _write(frames: Iterator[pl.DataFrame], out: Path | str, columns: Mapping[str, Any]) -> None:
    """Streams the frames to a file, atomically."""
    problems: list[BaseException] = []

    def stream(some: Any, predicate: Any, rows: Any, size: Any) -> Iterator[pl.DataFrame]:
        try:
            yield from frames
        except BaseException as problem:  # polars would wrap it in an error of its own
            problems.append(problem)

    lazy = register_io_source(stream, schema=columns)
    with new_file(out) as file:
        try:
            lazy.sink_parquet(file) if Path(out).suffix == ".parquet" else lazy.sink_csv(file)
        except (OSError, pl.exceptions.PolarsError) as problem:  # polars gives errors of the disk as strings
            said = re.search(r"\(os error (\d+)\)", str(problem))
            if said is None:
                raise
            raise OSError(int(said[1]), os.strerror(int(said[1]))) from None
        if problems:
            raise problems[0]


def show_prediction(result: dict[str, Any]) -> None:
    """Prints counts of the rows, and examples of bad rows as messages."""
    for example in result["examples"]:
        say(example)
    bad, repaired = sum(result["rejected"].values()), sum(result["repaired"].values())
    counts = f"{result['rows']:,} predictions, {repaired:,} {result['unit']}s repaired, {bad:,} bad"
    output.print(f"wrote {result['out']}: {counts}")
    if "metrics" in result:
        output.print(short_text(Metrics(**result["metrics"])))
