"""`dlrmctl predict`: probabilities for rows that are in no store, in their order, in bounded memory."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from polars.io.plugins import register_io_source

from dlrmctl.console.console import output, say, warn
from dlrmctl.data.errors import DataError
from dlrmctl.data.features.space import GENERATED, FeatureSpace
from dlrmctl.data.formats.arrays import NpyInput
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.formats.raw import Input, unit_of
from dlrmctl.data.formats.table_schema import TableSchema, read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.preparation.new_rows import NewRows, cut_batches, read_new_rows
from dlrmctl.data.schema import MISSING_ROW, RARE_ROW
from dlrmctl.datasets.open import open_source
from dlrmctl.datasets.prepare import warn_of_lost_fields
from dlrmctl.errors import UserError
from dlrmctl.ranks.ranks import Ranks
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.opened import open_model, run_features
from dlrmctl.scoring.metrics import Metrics, StreamingMetrics, short_text
from dlrmctl.settings.config import Config
from dlrmctl.settings.toml import read_toml

SUFFIXES = (".parquet", ".csv")
SHOWN_BAD_LINES = 10
SUSPICIOUS = 20  # values of a feature that are all unknown
_UNLABELLED = "leave out --labelled, if the rows have no labels"


@dataclass
class _Found:
    """What was read and predicted so far."""

    unit: str
    labelled: bool
    rows: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    first_extra_fields: int = 0  # of the first bad line: fields above the expected number
    values: Counter[int] = field(default_factory=Counter)
    known: Counter[int] = field(default_factory=Counter)

    def add(self, piece: NewRows) -> None:
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

    def unknown(self, keys: Sequence[str]) -> list[str]:
        """Features whose values, of which there are some, are all outside the vocabulary."""
        return [name for f, name in enumerate(keys) if self.values[f] >= SUSPICIOUS and not self.known[f]]

    def refuse_nothing(self) -> None:
        """Check that there was a good row.

        Raises:
            UserError: if there was none.
        """
        if self.rows:
            return
        raise UserError(f"no good row; {self.examples[0] if self.examples else 'there are no rows'}", self.other_flag())

    def other_flag(self) -> str | None:
        """What to try where the first bad line has a field more or less than it should, as a label is one."""
        if self.labelled:
            return _UNLABELLED if self.first_extra_fields == -1 else None
        return "--labelled, if the rows have labels" if self.first_extra_fields == 1 else None

    def warn(self, keys: Sequence[str]) -> None:
        """Of what is not wrong in any one row, and may be wrong with all of them."""
        if sum(self.rejected.values()) > self.rows and (hint := self.other_flag()):
            warn(f"most {self.unit}s were left out, the first because of {self.examples[0]}; {hint}")
        warn_of_lost_fields(self.repaired, self.rows, [key for f, key in enumerate(keys) if not self.values[f]])
        for name in self.unknown(keys):
            warn(f"{name}: none of its values is known to the model; is it of the type that the training data had?")


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
    from_data: bool = False,
) -> dict[str, Any]:
    """Scores the rows of the sources.

    Args:
        checkpoint: "best", "last" or "step-N".
        sources: in the format that the training data was prepared from.
        schema: for tables: what their columns are; None for the schema of the training data.
        labelled: whether the rows have labels; the metrics are given then.
        out: .parquet or .csv; has a row for every good row, in order: source, line, probability, label if there.
        from_data: take vocabulary and transforms from the data that the settings name, not from the run.

    Returns:
        What was read, and the metrics if there are labels.

    Raises:
        UserError, DataError: if something is not there or does not fit.
    """
    if out.suffix not in SUFFIXES:
        raise UserError(f"{out}: predictions are written to a file ending in {' or '.join(SUFFIXES)}")
    if out.exists():
        raise UserError(f"{out}: exists already", "choose another file, or remove this one")
    if not out.resolve().parent.is_dir():
        raise UserError(f"{out.parent}: there is no such directory", f"mkdir -p {out.parent}")
    features = open_source(config.data, verify=()).features if from_data else run_features(config, run)
    if features.input == GENERATED:
        raise UserError("generated data has no raw rows to score", "dlrmctl evaluate scores its splits")
    opened = open_model(config, run, ranks, checkpoint=checkpoint, features=features)
    raw = _input(features, sources, schema, labelled=labelled)
    rows = read_new_rows(raw, features.encoders(), features.schema)
    found, metrics = _Found(unit_of(raw.format), labelled), StreamingMetrics(torch.device("cpu"))
    scored = _scored(rows, opened.model, features, config.train.batch_size, ranks, found, metrics, labelled=labelled)
    _write(scored, out, labelled=labelled)
    found.warn(features.schema.keys)
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


def _input(features: FeatureSpace, sources: Sequence[str], schema: Path | None, *, labelled: bool) -> Input:
    """The sources as an input of the kind that the training data was made from."""
    format = features.input
    if schema is not None:
        return _table(read_schema(read_toml(schema), str(schema)), sources, labelled=labelled)
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
    return _table(features.table_schema, sources, labelled=labelled)


def _table(schema: TableSchema, sources: Sequence[str], *, labelled: bool) -> Input:
    try:
        return TableInput(schema, sources, labelled=labelled)
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
    *,
    labelled: bool,
) -> Iterator[pl.DataFrame]:
    """Predictions in frames of a batch; batches are as large as evaluation's, which gives a row the same bits."""
    offset = features.logit_offset()
    places: list[tuple[str, int]] = []

    def blocks() -> Iterator[Any]:
        for piece in rows:
            found.add(piece)
            places.extend((piece.source, line) for line in piece.lines_N.tolist())
            if len(piece.block):
                yield piece.block

    for batch in cut_batches(blocks(), features.schema.keys, batch_size):
        on_device = batch.to(ranks.device)
        with torch.no_grad():  # for this call: polars may ask for the next frame from another thread
            logits_B = (inference(on_device.dense_BI, on_device) + offset)[: batch.num_valid].float().cpu()
        labels_B = batch.labels_B[: batch.num_valid]
        names, lines = zip(*places[: batch.num_valid], strict=True)
        del places[: batch.num_valid]
        columns = {"source": list(names), "line": list(lines), "probability": logits_B.sigmoid().numpy()}
        if labelled:
            metrics.update(logits_B, labels_B)
            columns["label"] = labels_B.to(torch.uint8).numpy()
        yield pl.DataFrame(columns, schema=_columns(labelled))
    found.refuse_nothing()


def _columns(labelled: bool) -> dict[str, Any]:
    columns: dict[str, Any] = {"source": pl.String, "line": pl.Int64, "probability": pl.Float32}
    return columns | ({"label": pl.UInt8} if labelled else {})


def _write(frames: Iterator[pl.DataFrame], out: Path, *, labelled: bool) -> None:
    """Streams the frames into a file that appears when it is whole."""
    problems: list[BaseException] = []

    def stream(columns: Any, predicate: Any, rows: Any, size: Any) -> Iterator[pl.DataFrame]:
        try:
            yield from frames
        except BaseException as problem:  # polars would tell it as one of its own
            problems.append(problem)

    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")  # another of that name is not ours to remove
    lazy = register_io_source(stream, schema=_columns(labelled))
    try:
        lazy.sink_parquet(partial) if out.suffix == ".parquet" else lazy.sink_csv(partial)
        if problems:
            raise problems[0]
        partial.replace(out)
    except OSError as problem:
        raise UserError(f"{out}: cannot be written: {problem.strerror or problem}") from None
    finally:
        partial.unlink(missing_ok=True)


def show_prediction(result: dict[str, Any]) -> None:
    """What was read and written, on standard output; bad lines among the messages."""
    for example in result["examples"]:
        say(example)
    bad, mended = sum(result["rejected"].values()), sum(result["repaired"].values())
    output.print(
        f"{result['out']}: {result['rows']:,} predictions, {mended:,} {result['unit']}s repaired, {bad:,} left out"
    )
    if "metrics" in result:
        output.print(short_text(Metrics(**result["metrics"])))
