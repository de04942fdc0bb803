"""Prepares raw data as a store and reports on it (`dlrmctl prepare`)."""

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from dlrmctl.console.console import say, warn
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import few
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.files import io_errors, write_whole
from dlrmctl.data.formats.arrays import NpyInput
from dlrmctl.data.formats.criteo import LOST_FIELDS, CriteoInput
from dlrmctl.data.formats.raw import Input
from dlrmctl.data.formats.table_schema import TableSchema, read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.formats.texts import STANDARD_INPUT
from dlrmctl.data.formats.transforms import TRANSFORMS
from dlrmctl.data.moments import EPOCHS, SECOND
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare as run_preparation
from dlrmctl.data.preparation.report import PrepareProgress, PrepareReport
from dlrmctl.data.preparation.tally import TooManyBadRows
from dlrmctl.data.preparation.unfinished import CONTINUES, partial_path
from dlrmctl.data.remote.urls import is_remote, refuse_web
from dlrmctl.data.schema import RESERVED_ROWS
from dlrmctl.data.splits import Split
from dlrmctl.data.store.manifest import name_of_directory, read_manifest
from dlrmctl.data.store.store import Store
from dlrmctl.data.store.upload import check_new_store, upload
from dlrmctl.data.workers.cluster import ClusterWorkers
from dlrmctl.data.workers.pool import Workers
from dlrmctl.data.workers.processes import ProcessWorkers
from dlrmctl.datasets.request import PrepareRequest
from dlrmctl.datasets.show import show_most_frequent, show_report
from dlrmctl.errors import Interrupted, UserError
from dlrmctl.ranks.cores import usable_cores
from dlrmctl.ranks.signals import terminable
from dlrmctl.settings.stores import store_place
from dlrmctl.settings.toml import read_toml

_PHASES = {"parse": "reading", "arrange": "ordering", "encode": "numbering ids", "write": "writing"}
_MOSTLY, _FEWEST_HELD_OUT = 0.9, 20  # share of rare and new values, and number of values, that call for a warning
_FROM_YEAR, _TO_YEAR = 946_684_800, 2_208_988_800  # seconds from 1970 to 2000 and to 2040
_ROUNDING = 1e-3  # of values in float16
_FEW_BYTES = 1 << 27  # of sources, for which starting processes takes as long as they save
_CUT = 0.01  # share of a column's values that a transform makes one, which calls for a warning
_LOOKED_AT = 100  # most frequent values of a column that are searched for list separators


@dataclass(frozen=True)
class Prepared:
    """A store that was prepared.

    Attributes:
        path: its directory, or its URL.
        name: of the data.
        split: the rule of its splits.
        report: counts of rows, splits and columns.
    """

    path: Path | str
    name: str
    split: Split
    report: PrepareReport

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {"store": str(self.path), "name": self.name, **self.report.to_dict()}


def prepare(request: PrepareRequest, out: Path | str) -> Prepared:
    """Prepares data, with messages of progress and warnings.

    Args:
        out: directory of the new store; or its URL, where it is uploaded after it was prepared on this machine.

    Raises:
        UserError, DataError: if something is missing or does not fit.
    """
    if not is_remote(str(out)):
        return _prepare_here(request, Path(out))
    url = str(out).rstrip("/")
    refuse_web(url)
    check_new_store(url)
    place = Path(platformdirs.user_cache_dir("dlrmctl")) / "uploads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    store = place / Path(url).name
    with io_errors(place, "write"):
        place.mkdir(parents=True, exist_ok=True)
    decided = {**request.options, "name": request.options.get("name") or name_of_directory(store)}
    task, begun = _task(request), place / "task"
    if begun.exists() and begun.read_text() != task:
        raise UserError(
            f"{url}: an upload was begun with other sources or options",
            f"give the same ones to continue it, or remove {place} to start over",
        )
    write_whole(begun, task.encode())
    if (store / "manifest.json").exists():
        say("the store was prepared before: the upload continues")
        made = read_manifest(store).preparation
        assert made is not None
        prepared = Prepared(store, decided["name"], made.split, PrepareReport.from_dict(made.report))
    else:
        prepared = _prepare_here(replace(request, options=decided), store)
    with terminable():
        upload(store, url, place / "uploaded.json", lambda name: say(f"uploading {name}"))
    shutil.rmtree(place)
    return replace(prepared, path=url)


def _task(request: PrepareRequest) -> str:
    """Changes with the sources and the options."""
    files = [file for some in request.sources for file in ([some] if isinstance(some, str) else some)]
    identity = dict(_open_input(request, files).identity())
    plain = json.dumps([identity, request.sources, request.options], default=str, sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def _prepare_here(request: PrepareRequest, out: Path) -> Prepared:
    """Prepares data on this machine.

    Raises:
        DataError: if the files or the options are wrong.
        UserError: if the schema is not a TOML file, or the parent directory of the store does not exist.
    """
    if not out.resolve().parent.is_dir():
        raise UserError(f"{out.parent}: no such directory", f"mkdir -p {out.parent}")
    if request.scheduler is not None:  # workers have another working directory
        request, out = replace(request, sources=_absolute(request.sources)), out.absolute()
    split = Split.parse(**request.options["split"])
    files = [source for source in request.sources if isinstance(source, str)]
    if not files:
        own = [list(of_split) for of_split in request.sources]
        counts = [len(_open_input(request, of_split).sources) for of_split in own]
        split, files = Split("files", sources=(counts[0], counts[1])), [file for of_split in own for file in of_split]
    decisions = _decided({**request.options, "split": split}, out)
    source = _open_input(request, files, split)
    for doubt in source.doubts if isinstance(source, TableInput) else ():
        warn(doubt)
    try:
        with _interruptions(out), _workers(request, source, out) as workers, _Display() as display:
            report = run_preparation(source, out, decisions, display.update, workers=workers)
    except TooManyBadRows as error:
        raise UserError(error.message, f"{error.counts}; --max-bad-rows N allows more") from None
    unknown: list[str] = []
    if decisions.vocabulary_from:
        # Together with missing values, these are all values of the column.
        unknown = [c.name for c in report.columns if c.rows > RESERVED_ROWS and c.rare_train + c.missing > 0.9999]
        if unknown:
            its = "its" if len(unknown) == 1 else "their"
            of = f"{decisions.vocabulary_from} has none of {its} values"
            warn(f"{few(unknown)}: {of}; was the type different there?")
    warn_of_lost_fields(report.repaired, report.rows, [c.name for c in report.columns if c.missing == 1])
    warn_of_constant_columns(report)
    # Groups of validation and test are new by the rule of the split.
    grouped = [split.column] if split.by == "group" and split.column is not None else []
    warn_of_new_values(report, known_to_be_new=[*unknown, *grouped])
    warn_of_equal_labels(report, source.table_schema.name if isinstance(source, TableInput) else None)
    if isinstance(source, TableInput):
        features = Store(out).features
        _warn_of_joined_lists(source, features)
        _warn_of_timestamps(source.table_schema, report)
        _warn_of_cut_values(source.table_schema, features)
    return Prepared(out, decisions.name or name_of_directory(out), decisions.split, report)


def _absolute(sources: Sequence[str] | Sequence[Sequence[str]]) -> list[Any]:
    """The sources with the whole paths of files; the text from standard input and URLs are what they are."""

    def whole(source: str) -> str:
        if source == STANDARD_INPUT or is_remote(source):
            return source
        return str(Path(source).expanduser().absolute())

    return [whole(source) if isinstance(source, str) else _absolute(source) for source in sources]


def _workers(request: PrepareRequest, source: Input, out: Path) -> Workers:
    """Threads for small inputs; else processes, or those of a cluster."""
    if request.scheduler is not None:
        # Versions are checked, and what is lost is told in one line.
        warnings.filterwarnings("ignore", module="distributed")
        warnings.filterwarnings("ignore", message="Sending large graph")
        cluster = ClusterWorkers(request.scheduler)
        files = [file for file in request.sources if isinstance(file, str) and Path(file).exists()]
        for name in ("distributed", "distributed.client", "distributed.utils"):
            logging.getLogger(name).handlers = [logging.NullHandler()]
            logging.getLogger(name).propagate = False
        cluster.check_files([out.resolve().parent, *map(Path, files)])
        return cluster
    number = request.workers or usable_cores()
    small = request.workers is None and 0 < sum(file.num_bytes for file in source.sources) < _FEW_BYTES
    return Workers(number) if number == 1 or small else ProcessWorkers(number)


def show_prepared(prepared: Prepared) -> None:
    """Prints the report, and the most frequent values of each column."""
    show_report(prepared.report, prepared.split, str(prepared.path))
    show_most_frequent(Store(store_place(prepared.path)).features)


def _decided(options: dict[str, Any], out: Path) -> PrepareOptions:
    """The options, with what follows from the store that is extended, and from the new one's name."""
    chosen = {**options, "name": options.get("name") or name_of_directory(out)}
    if options.get("extend") is not None:
        made = read_manifest(options["extend"]).preparation
        if made is not None:
            chosen["min_count"] = options["min_count"] or made.min_count
            chosen["max_rows_per_table"] = options["max_rows_per_table"] or made.max_rows_per_table
            if any(c.scheme == "vocabulary" and c.rare is None for c in made.columns):
                say(f"{options['extend']} has no counts of its rare values (--keep-rare): they are counted from now on")
    if chosen.get("min_count") is None:
        chosen.pop("min_count", None)
    return PrepareOptions(**chosen)


def warn_of_lost_fields(repaired: Mapping[str, int], rows: int, empty: Sequence[str]) -> None:
    """Warns if most rows lack columns: some tools strip empty fields at the end of lines, but not of most lines.

    Args:
        repaired: number of rows by repair.
        rows: number of good rows, including repaired ones.
        empty: features without any value.
    """
    lost = repaired.get(LOST_FIELDS, 0)
    if 2 * lost > rows:
        without = f" ({empty[0]}{f' to {empty[-1]}' if len(empty) > 1 else ''} without any value)" if empty else ""
        warn(
            f"{lost:,} of {rows:,} rows lack columns at the end of the line, which were read as empty"
            f"{without}: the file may be cut"
        )


def warn_of_constant_columns(report: PrepareReport) -> None:
    """Warns of features that have the same value in every row: a model cannot learn from them."""
    empty = [column.name for column in report.dense if column.missing == 1]
    empty += [column.name for column in report.columns if column.missing == 1]
    constant = [column.name for column in report.dense if not column.missing and column.low == column.high]
    constant += [column.name for column in report.columns if not column.missing and column.cardinality == 1]
    said = [f"{few(empty)} without any value"] if empty else []
    said += [f"{few(constant)} with one value in all rows"] if constant else []
    if said:
        warn(f"nothing can be learned from {' and '.join(said)}")


def warn_of_new_values(report: PrepareReport, *, known_to_be_new: Sequence[str] = ()) -> None:
    """Warns of sparse features whose values after the training rows are nearly all rare or new, such as dates.

    Args:
        known_to_be_new: features that another warning named.
    """
    held_out = sum(report.splits[split].examples for split in ("validation", "test"))
    shares = {
        column.name: column.rare_held_out
        for column in report.columns
        if column.rare_held_out >= _MOSTLY
        and (1 - column.missing) * held_out >= _FEWEST_HELD_OUT
        and column.name not in known_to_be_new
    }
    if shares:
        named = few([f"{name} ({100 * share:.0f} %)" for name, share in shares.items()])
        warn(
            f"{named}: this share of the values in validation and test is rare or new; "
            "a model learns nothing from columns such as dates and row numbers"
        )


def warn_of_equal_labels(report: PrepareReport, schema: str | None) -> None:
    """Warns if all training examples have the same label: a model would only learn that label.

    Args:
        schema: name of the schema that says which labels are positive, if there is one.
    """
    train = report.splits["train"]
    if train.examples and train.label_rate in (0, 1):
        check = f": check label and label_positive in {schema}" if schema else ""
        warn(f"all {train.examples:,} training labels are {train.label_rate:.0f}{check}")


def _warn_of_joined_lists(source: TableInput, features: FeatureSpace) -> None:
    """Warns of columns of single strings that look like lists, because frequent values have the list separator."""
    schema = source.table_schema
    rows_of = {feature.name: feature.rows for feature in features.schema.sparse}
    joined = {}
    single = [c for c in schema.sparse if c.max_ids == 1 and c.type is None and c.cross is None and c.part is None]
    for name in (column.name for column in single if source.format == "csv"):
        if features.sorted_by_frequency(name):
            last = min(rows_of[name], RESERVED_ROWS + _LOOKED_AT)
            values = features.values_of(name, range(RESERVED_ROWS, last))
            found = [value for value in values if value and schema.list_separator in value]
            if 2 * len(found) > len(values):
                joined[name] = found[0]
    for name, example in joined.items():
        warn(
            f"{name} has values such as {example!r}, each read as one string: to read lists, set max_ids under "
            f"[columns.{name}] in {schema.name}"
        )


def _warn_of_timestamps(schema: TableSchema, report: PrepareReport) -> None:
    """Warns of dense columns whose numbers are times: transformed, they are nearly one value."""
    for column, found in zip(schema.dense, report.dense, strict=True):
        plain = column.since is None and column.clip is None and found.missing < 1
        for unit, microseconds in EPOCHS.items() if plain else ():
            years = np.array([_FROM_YEAR, _TO_YEAR]) * (SECOND / microseconds)
            low, high = TRANSFORMS[column.transform].apply(years) * [1 - _ROUNDING, 1 + _ROUNDING]
            if low <= found.low and found.high <= high:
                warn(
                    f"{found.name} looks like {unit} since 1970, which hardly differ for a model: take parts of the "
                    f"time, or the time since another, in {schema.name}"
                )


def _warn_of_cut_values(schema: TableSchema, features: FeatureSpace) -> None:
    """Warns of dense columns with many values of -2 or less, all of which the logarithm makes 0."""
    shares = {
        fitted.name: 2 * fitted.ranks[0]  # a rank is that of the middle of equal values
        for column, fitted in zip(schema.dense, features.dense, strict=True)
        if column.transform == "log" and fitted.values and fitted.values[0] == 0
    }
    named = [f"{name} ({100 * share:.0f} %)" for name, share in shares.items() if share >= _CUT]
    if named:
        warn(
            f'{few(named)}: this share of the values is -2 or less, which the transform "log" makes one value; '
            f'set transform = "none" in {schema.name}'
        )


@contextmanager
def _interruptions(out: Path) -> Iterator[None]:
    """Handles SIGTERM like Ctrl-C, and prints that partial work is kept."""
    try:
        with terminable():
            yield
    except (KeyboardInterrupt, Interrupted):
        partial = partial_path(out)
        if partial.exists():
            say(f"{partial} is kept: {CONTINUES}")
        raise


def _open_input(request: PrepareRequest, sources: Sequence[str], split: Split | None = None) -> Input:
    """Opens the sources, with the column that the split depends on."""
    if request.format == "npy":
        return NpyInput(sources, as_rows=request.ids_are_rows)
    if request.format == "criteo":
        return CriteoInput(sources)
    assert request.schema is not None
    described = isinstance(request.schema, Mapping)
    content = request.schema if isinstance(request.schema, Mapping) else read_toml(Path(request.schema))
    return TableInput(read_schema(content, "the schema" if described else str(request.schema)), sources, split=split)


class _Display(BarDisplay):
    """Progress of a preparation."""

    def __init__(self) -> None:
        self._phase = ""
        super().__init__()

    def update(self, progress: PrepareProgress) -> None:
        if progress.phase != self._phase:
            self._phase = progress.phase
            self.begin(_PHASES[progress.phase], progress.total, progress.begun)
        self.advance_to(progress.done, progress.total, about_progress(progress, self.seconds))


def about_progress(progress: PrepareProgress, seconds: float) -> str:
    """Number of rows, and their rate over the `seconds` since the phase began."""
    parts = [f"{progress.rows:,} rows"]
    own = progress.done - progress.begun
    if progress.phase == "encode" and progress.rows:
        columns = progress.total // progress.rows
        parts.append(f"column {min(progress.done // progress.rows + 1, columns)} of {columns}")
    elif own > 0 and seconds > 0.1:  # a shorter time gives no rate
        rows = progress.rows * own / progress.done if progress.phase == "parse" else own
        parts.append(f"{rows / seconds:,.0f} rows/s")
    return ", ".join(parts)
