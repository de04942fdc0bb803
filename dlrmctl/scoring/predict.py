"""`dlrmctl predict`: probabilities for rows that are in no store, in their order, in bounded memory."""

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
from dlrmctl.data.files import whole_file
from dlrmctl.data.formats.arrays import NpyInput
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.formats.raw import NO_LABEL, Input, unit_of
from dlrmctl.data.formats.table_schema import BY_TYPE, TableSchema, read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.preparation.new_rows import NewRows, cut_batches, read_new_rows
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
SUSPICIOUS = 20  # values of a feature that are all unknown
_UNLABELLED = "leave out --labelled, if the rows have no labels"
_COLUMNS = {"source": pl.String, "line": pl.Int64, "probability": pl.Float32, "label": pl.UInt8, "problem": pl.String}


@dataclass
class _Found:
    """What was read so far.

    Args:
        unit: "row" or "line".
        labelled: whether the rows should have labels.
        max_bad_rows: rows without a prediction that are allowed; None allows 100 and 1 % of those read.
    """

    unit: str
    labelled: bool
    max_bad_rows: int | None
    rows: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    first_extra_fields: int = 0  # of the first bad line: fields above the expected number
    values: Counter[int] = field(default_factory=Counter)
    known: Counter[int] = field(default_factory=Counter)

    def add(self, piece: NewRows) -> None:
        """Counts a piece.

        Raises:
            UserError: if more rows are bad by now than are allowed.
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
                f"{bad:,} of the first {read:,} {self.unit}s cannot be read, at most {allowed:,} may be; "
                f"{self.examples[0]}",
                self.other_flag() or "--max-bad-rows N allows more; what is wrong with them stands in their place",
            )

    def unknown(self, keys: Sequence[str]) -> list[str]:
        """Features whose values, of which there are some, are all outside the vocabulary."""
        return [name for f, name in enumerate(keys) if self.values[f] >= SUSPICIOUS and not self.known[f]]

    def refuse_other_kind(self) -> None:
        """Check that the rows are of the kind that was announced, once all are read.

        Raises:
            UserError: if none is good, or most look as if they had labels, or none, against what was said.
        """
        if not self.rows:
            first = self.examples[0] if self.examples else "there are no rows"
            raise UserError(f"no good row; {first}", self.other_flag())
        bad = self.rejected.total()
        if bad > self.rows and (hint := self.other_flag()):
            raise UserError(f"{bad:,} of {self.rows + bad:,} {self.unit}s cannot be read; {self.examples[0]}", hint)

    def other_flag(self) -> str | None:
        """What to try where the first bad line has a field more or less than it should, or most lack their label."""
        if self.labelled:
            without = sum(self.rejected[reason] for reason in NO_LABEL)
            return _UNLABELLED if self.first_extra_fields == -1 or 2 * without > self.rejected.total() else None
        return "--labelled, if the rows have labels" if self.first_extra_fields == 1 else None

    def warn(self, features: FeatureSpace) -> None:
        """Of what is not wrong in any one row, and may be wrong with all of them."""
        keys = features.schema.keys
        warn_of_lost_fields(self.repaired, self.rows, [key for f, key in enumerate(keys) if not self.values[f]])
        if unknown := self.unknown(keys):
            its, is_it = ("its", "is it") if len(unknown) == 1 else ("their", "are they")
            known = known_values(features, unknown[0])
            of = f" of {unknown[0]}" if len(unknown) > 1 else ""
            such = f", which knows {known}{of}" if known else ""
            warn(
                f"{few(unknown)}: none of {its} values is known to the model{such}; "
                f"{is_it} of the type that the training data had?"
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
    out: Path,
    keep: Sequence[str] = (),
    max_bad_rows: int | None = None,
    from_data: bool = False,
) -> dict[str, Any]:
    """Scores the rows of the sources.

    Args:
        checkpoint: "best", "last" or "step-N".
        sources: in the format that the training data was prepared from.
        schema: for tables: what their columns are; None for the schema of the training data.
        labelled: whether the rows have labels; the metrics are given then.
        out: .parquet or .csv; has a row for every row of the sources, in order: source, line, probability, label if
            there, problem (why there is no probability), and the columns of `keep`.
        keep: columns of tables that are written beside the predictions.
        max_bad_rows: rows that may be without a probability; None allows 100 and 1 % of those read.
        from_data: take vocabulary and transforms from the data that the settings name, not from the run.

    Returns:
        What was read, and the metrics if there are labels.

    Raises:
        UserError, DataError: if something is not there or does not fit.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out}: predictions are written to a file ending in {' or '.join(SUFFIXES)}")
    if out.exists():
        raise UserError(f"{out} already exists", "choose another file, or remove this one")
    if not out.resolve().parent.is_dir():
        raise UserError(f"{out.parent}: no such directory", f"mkdir -p {out.parent}")
    features = open_source(config.data, verify=()).features if from_data else run_features(config, run)
    if features.input == GENERATED:
        raise UserError("generated data has no raw rows to score", "dlrmctl evaluate scores its splits")
    opened = open_model(config, run, ranks, checkpoint=checkpoint, features=features)
    raw = _input(features, sources, schema, labelled=labelled, keep=keep)
    kept = raw.kept_types if isinstance(raw, TableInput) else {}
    _check_kept(keep, out, kept)
    rows = read_new_rows(raw, features.encoders(), features.schema)
    found = _Found(unit_of(raw.format), labelled, max_bad_rows)
    metrics = StreamingMetrics(torch.device("cpu"))
    scored = _scored(rows, opened.model, features, config.train.batch_size, ranks, found, metrics)
    if ranks.is_main:
        _write(scored, out, _columns(labelled, kept))
        found.warn(features)
    else:  # every rank takes part in every batch
        deque(scored, maxlen=0)
    result: dict[str, Any] = {
        "out": str(out),
        "checkpoint": opened.checkpoint.name,
        "rows": found.rows,
        "unit": found.unit,
        "repaired": dict(found.repaired),
        "rejected": dict(found.rejected),
        "examples": found.examples,
    }
    return result | ({"metrics": metrics.compute().to_dict()} if labelled else {})


def _input(
    features: FeatureSpace, sources: Sequence[str], schema: Path | None, *, labelled: bool, keep: Sequence[str]
) -> Input:
    """The sources as an input of the kind that the training data was made from."""
    format = features.input
    for name in keep:
        if name in _COLUMNS:
            raise UserError(f"--keep {name}: the predictions have a column of that name", "rename the one of the rows")
    if keep and schema is None and format in ("criteo", "npy"):
        raise UserError(
            f"--keep {','.join(keep)}: rows in the format {format!r} have no columns besides the features",
            "source and line say which row a prediction is of",
        )
    if schema is not None:
        rule = features.table_schema.values if features.table_schema else BY_TYPE
        given = read_schema(read_toml(schema), str(schema), values=rule)
        return _table(given, sources, labelled=labelled, keep=keep, trained_on=format)
    if format == "criteo":
        return CriteoInput(sources, labelled=labelled)
    if format == "npy":
        return NpyInput(sources)
    if format is None:
        raise UserError(f"{features.directory}: was not made from raw rows, so new ones cannot be read like them")
    if features.table_schema is None:  # by an earlier version
        raise UserError(
            f"{features.directory}: was made from tables, and does not keep their schema", "--schema my.toml"
        )
    return _table(features.table_schema, sources, labelled=labelled, keep=keep, trained_on=format)


def _table(
    schema: TableSchema, sources: Sequence[str], *, labelled: bool, keep: Sequence[str], trained_on: str | None
) -> Input:
    try:
        return TableInput(schema, sources, labelled=labelled, keep=keep, trained_on=trained_on)
    except DataError as problem:
        if labelled and problem.missing_column == schema.label:
            raise UserError(str(problem), _UNLABELLED) from None
        raise


def _scored(
    rows: Iterator[NewRows],
    inference: Any,
    features: FeatureSpace,
    batch_size: int,
    ranks: Ranks,
    found: _Found,
    metrics: StreamingMetrics,
) -> Iterator[pl.DataFrame]:
    """Every row of the pieces with its prediction or its problem, in order.

    Batches are as large as evaluation's, which gives a row the same bits.
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
            metrics.update(logits_B, batch.labels_B[: batch.num_valid])
        yield from pieces.scored(logits_B.sigmoid().numpy())
    found.refuse_other_kind()
    yield from pieces.scored(np.empty(0, dtype=np.float32))  # pieces without a good row


class _Unscored:
    """Pieces whose rows wait for their probabilities."""

    def __init__(self, labelled: bool) -> None:
        self._labelled = labelled
        self._waiting: deque[NewRows] = deque()
        self._probabilities = np.empty(0, dtype=np.float32)

    def add(self, piece: NewRows) -> None:
        self._waiting.append(piece)

    def scored(self, probabilities: np.ndarray) -> Iterator[pl.DataFrame]:
        """The pieces that are complete with these probabilities, the next ones of good rows."""
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


def _check_kept(keep: Sequence[str], out: Path, kinds: Mapping[str, pl.DataType]) -> None:
    """
    Raises:
        UserError: if a column cannot be written beside the predictions.
    """
    for name in keep:
        if out.suffix == ".csv" and kinds[name].is_nested():
            raise UserError(f"--keep {name}: a CSV cannot hold its {kinds[name]}", "-o FILE.parquet")


def _write(frames: Iterator[pl.DataFrame], out: Path, columns: Mapping[str, Any]) -> None:
    """Streams the frames into a file that appears when it is whole."""
    problems: list[BaseException] = []

    def stream(some: Any, predicate: Any, rows: Any, size: Any) -> Iterator[pl.DataFrame]:
        try:
            yield from frames
        except BaseException as problem:  # polars would tell it as one of its own
            problems.append(problem)

    lazy = register_io_source(stream, schema=columns)
    with whole_file(out) as file:
        try:
            lazy.sink_parquet(file) if out.suffix == ".parquet" else lazy.sink_csv(file)
        except (OSError, pl.exceptions.PolarsError) as problem:  # what the disk says, in a string
            said = re.search(r"\(os error (\d+)\)", str(problem))
            if said is None:
                raise
            raise OSError(int(said[1]), os.strerror(int(said[1]))) from None
        if problems:
            raise problems[0]


def show_prediction(result: dict[str, Any]) -> None:
    """What was read and written, on standard output; bad lines among the messages."""
    for example in result["examples"]:
        say(example)
    bad, mended = sum(result["rejected"].values()), sum(result["repaired"].values())
    output.print(f"{result['out']}: {result['rows']:,} predictions, {mended:,} {result['unit']}s repaired, {bad:,} bad")
    if "metrics" in result:
        output.print(short_text(Metrics(**result["metrics"])))
