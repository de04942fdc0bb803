"""Runs `dlrmctl compress-embeddings`: opens the source, compresses, fine-tunes, reports, and writes."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dlrmctl.assembly.compressed import is_compressed
from dlrmctl.assembly.network import load_network
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.assembly.wide import stored_wide
from dlrmctl.compress.compression import Compression, as_it_is, compress, write
from dlrmctl.compress.counts import RowCounts
from dlrmctl.compress.finetune import Tuned, Tuner, fine_tune, open_fresh
from dlrmctl.compress.report import draw_frontier, make_report, show_report
from dlrmctl.compress.request import FineTuneRequest, Request, check_output, check_plot, check_reach
from dlrmctl.compress.sources import TensorFiles
from dlrmctl.compress.trial import Trial
from dlrmctl.console.console import print_json
from dlrmctl.console.progress import BarDisplay
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.datasets.open import open_reader, open_source
from dlrmctl.embeddings.compression.composed import compose
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks, process_group
from dlrmctl.rundir.checkpoint import Checkpoints
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.opened import find_checkpoint, same_ids
from dlrmctl.rundir.stored_tables import CheckpointTables
from dlrmctl.settings.config import Config
from dlrmctl.settings.typed import resolve_typed


@dataclass(frozen=True)
class Given:
    """The command line, except for the request.

    Attributes:
        source: a run, a checkpoint or files of tensors.
        checkpoint: of a run; "best", "last" or "step-N".
        flags: the settings that were typed.
        finetune: request for fine-tuning, if any.
    """

    source: Path
    out: Path
    checkpoint: str
    flags: dict[str, str]
    dry_run: bool
    explain: bool
    plot: Path | None
    as_json: bool
    finetune: FineTuneRequest | None = None


def compress_embeddings(given: Given, request: Request) -> None:
    """Compresses tables, prints the report, and writes the result unless it is a dry run.

    Raises:
        UserError, DataError: if something is missing or does not fit, or the goal cannot be reached.
    """
    if not given.dry_run:
        check_output(given.out)
    if given.plot is not None:
        check_plot(given.plot)
    found = _run_of(given.source, given.flags)
    if found is None:
        _compress_tensors(given, request)
    else:
        with process_group("cpu") as ranks:
            _compress_run(given, request, *found, ranks)


def _compress_tensors(given: Given, request: Request) -> None:
    """Compresses tables without a model."""
    if request.goal == "budget":
        raise UserError(
            f"--max-ne-increase needs a run to evaluate; {given.source} contains tensors only",
            "use --target-ratio or --method",
        )
    if is_compressed(given.source):
        raise UserError(f"{given.source} is already compressed", "use --expand to write its plain tables")
    is_checkpoint = (given.source / "complete.json").is_file()
    tables = CheckpointTables(given.source) if is_checkpoint else TensorFiles(given.source, request.tables)
    check_reach(tables, request)
    if given.finetune is not None:
        raise UserError(f"--finetune-data needs a run to train; {given.source} contains tensors only")
    with BarDisplay() as progress:
        compression = compress(tables, request, trial=None, counts=lambda table: None, progress=progress)
    _finish(given, compression, make_report(compression, {}))


def _compress_run(given: Given, request: Request, run: RunDirectory, config: Config, ranks: Ranks) -> None:
    """Compresses the tables of a run's checkpoint, evaluates them on its data, and fine-tunes if requested."""
    if config.baseline is not None:
        raise UserError(f"{run.path} is a baseline, which has no embedding tables to compress", "use a run of `train`")
    checkpoint = find_checkpoint(Checkpoints(run.checkpoints, ranks), run, _checkpoint_name(given, run))
    tables = CheckpointTables(checkpoint)
    check_reach(tables, request)
    source = open_source(config.data)
    same_ids(checkpoint, tables.state.vocabulary, source.features)
    if request.goal == "budget" and not source.num_examples("validation"):
        raise UserError(
            "--max-ne-increase needs a validation split, which this data does not have",
            "use --target-ratio or --method, or pass other data with the same vocabulary with --data",
        )
    features, scoring = feature_tables(config, source.schema), config.for_scoring()
    network = load_network(config, source.features, tables.network(), checkpoint).to(ranks.device)
    stored = stored_wide(config, source.features, tables.wide(), checkpoint)
    wide = None if stored is None else stored.module().to(ranks.device)
    original = {table.name: as_it_is(tables, table) for table in tables.tables}
    together = partial(compose, features, config.embeddings.dim)
    fresh = open_fresh(given.finetune, config, tables.state, ranks) if given.finetune is not None else None
    counts = RowCounts(source, features)
    with BarDisplay() as progress:
        progress.begin("scoring the trained model")
        trials = {
            split: Trial(together, original, network, wide, open_reader(scoring, source, split, ranks, training=False))
            for split in ("validation", "test")
            if source.num_examples(split)
        }
        compression = compress(tables, request, trial=trials.get("validation"), counts=counts, progress=progress)
        progress.begin("scoring the result")
        report, tuned = make_report(compression, trials), None
        if fresh is not None:
            tuner = Tuner(together, original, tables.sums, network, wide, config, checkpoint, ranks)
            tuned = fine_tune(tuner, fresh, trials, original, compression.replaced(), report, progress)
    _finish(given, compression, report, tuned, source.features)


def _checkpoint_name(given: Given, run: RunDirectory) -> str:
    """The checkpoint to compress; the source itself may be one."""
    inside = given.source.resolve()
    return inside.name if inside != run.path.resolve() else given.checkpoint


def _finish(
    given: Given,
    compression: Compression,
    report: dict[str, Any],
    tuned: Tuned | None = None,
    features: FeatureSpace | None = None,
) -> None:
    report = {"source": str(given.source), **report}
    if not given.dry_run:
        write(compression, given.out, report, tuned, features)
    if given.plot is not None:
        draw_frontier(compression, report, given.plot)
    if given.as_json:
        print_json(report)
    else:
        show_report(report, None if given.dry_run else given.out, explain=given.explain)


def _run_of(source: Path, flags: dict[str, str]) -> tuple[RunDirectory, Config] | None:
    """The run that `source` is or belongs to, with its settings; None for files of tensors."""
    for path in (source, *source.resolve().parents[:2]):
        if (path / "run.toml").is_file() and not is_compressed(path):
            run = RunDirectory(path, writes=False)
            return run, resolve_typed(run.settings(), flags, file_name=str(path / "run.toml"))
    return None
