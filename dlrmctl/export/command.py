"""Runs `dlrmctl export`: writes a checkpoint as a file, compares its scores with the checkpoint's, and reports."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dlrmctl.assembly.baseline import load_baseline
from dlrmctl.assembly.compressed import is_compressed, open_artifact, read_parts
from dlrmctl.assembly.network import load_network
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.assembly.wide import StoredWide, stored_wide
from dlrmctl.console.console import output, print_table, say, warn
from dlrmctl.console.text import bytes_text, number_text, with_error
from dlrmctl.data.files import io_errors
from dlrmctl.data.source import Source
from dlrmctl.data.store.raw_sample import read_raw_sample
from dlrmctl.datasets.place import data_place, described_in
from dlrmctl.embeddings.compression.rules.pack import pack
from dlrmctl.embeddings.compression.rules.rows import Compressed, StoredRows
from dlrmctl.embeddings.first_order import FirstOrder
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.errors import UserError
from dlrmctl.export.agreement import Sample, agreement, refuse_disagreement, score_sample
from dlrmctl.export.bundle import check_features, write_bundle
from dlrmctl.export.compile import check_compiler
from dlrmctl.export.graph import ServedModel, ServedWide
from dlrmctl.export.metadata import describe
from dlrmctl.export.program import place_beside, score, score_bundle, score_file, to_program, write_program
from dlrmctl.export.raw_rows import RawRows, raw_agreement, refuse_raw_disagreement, score_raw
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.calibration import Calibration, read_calibration
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.opened import open_run, other_checkpoint, run_features
from dlrmctl.rundir.stored_tables import CheckpointTables, model_weights
from dlrmctl.serving.bundle import SUFFIX as BUNDLE_SUFFIX
from dlrmctl.settings.baseline import BaselineSettings
from dlrmctl.settings.config import Config

SUFFIX = ".pt2"  # of the graph alone
_ABOUT = ("run", "checkpoint", "precision", "data", "model", "logit_offset", "calibration", "checks")


@dataclass(frozen=True)
class Wanted:
    """The options of an export.

    Attributes:
        checkpoint: "best", "last" or "step-N" of a run; None for the best, and for a compressed model, which has one.
        precision: of the tables, "fp32" or "int8"; None keeps them as they are.
        check_rows: the most rows of the validation split that are compared.
        max_ne_rise: the largest relative increase of NE by "int8".
        calibrated: whether to apply the calibration of the checkpoint.
        compiled: whether a bundle gets native code, too.
    """

    out: Path
    checkpoint: str | None
    precision: str | None
    check_rows: int
    max_ne_rise: float
    calibrated: bool = False
    compiled: bool = False


def export(config: Config, run: RunDirectory, ranks: Ranks, wanted: Wanted) -> dict[str, Any]:
    """Writes the model of a run, or a compressed one: as a bundle, or as a program of torch.export.

    Memory: less than twice the tables; measured with 2.0 GiB of them, 3.7 GiB in all.

    Returns:
        The report: the file, and how it scores.

    Raises:
        UserError, DataError: if something is missing or does not fit, or the file's scores differ from the
            checkpoint's; no file is written then.
    """
    _check_file(wanted)
    if wanted.precision is not None and is_compressed(run.path):
        raise UserError(
            f"--precision {wanted.precision}: the tables of {run.path} are compressed, and are exported as they are",
            "omit --precision, or export the run they were made from",
        )
    if wanted.precision == "int8" and config.baseline is not None:
        raise UserError(f"--precision int8: {run.path} is a baseline, which has single weights", "omit --precision")
    if wanted.checkpoint is not None and is_compressed(run.path):
        raise other_checkpoint(run, wanted.checkpoint)
    exact = config.change(precision="fp32")
    if config.train.precision != "fp32":
        say(f"the run computes in {config.train.precision}; the exported model computes in float32")
    bundled = wanted.out.suffix == BUNDLE_SUFFIX
    if bundled:
        check_features(run_features(config, run))
    with place_beside(wanted.out) as place:  # before scoring, so that a directory that cannot be written fails early
        sample, raw, path, source = _scored(exact, run, ranks, wanted, place if bundled else None)
        gc.collect()  # the tables of evaluation are in reference cycles
        calibration = read_calibration(run, path) if wanted.calibrated else None
        name, model = path.name, _served(exact, run, path, source, wanted.precision, calibration)
        precision = wanted.precision or ("as compressed" if is_compressed(run.path) else "fp32")
        checks = agreement(sample, score(model, sample.inputs))
        refuse_disagreement(checks, name, precision, wanted.max_ne_rise)
        raw_served = score(model, raw.inputs) if raw else None
        origin = {"run": run.path.name, "checkpoint": name, "precision": precision, "data": source.fingerprint()}
        applied = calibration and {"method": calibration.method, "slope": calibration.slope, "bias": calibration.bias}
        metadata = describe(model, source, config, origin) | {"calibration": applied, "checks": checks}
        file = place / wanted.out.name
        say("tracing the graph, compiling and writing it" if wanted.compiled else "tracing the graph and writing it")
        with io_errors(wanted.out, "write"):
            program = to_program(model)
            if bundled:
                about = {key: metadata[key] for key in _ABOUT}
                write_bundle(file, program, source.features, about, compiled=wanted.compiled)
            else:
                write_program(program, file, metadata)
        tables = list(metadata["tables"].values())
        del model, program
        gc.collect()
        say("scoring the rows with the file, in a process that has torch alone")
        with io_errors(wanted.out, "write"):
            for compiled in (False, True) if wanted.compiled else (False,):
                if bundled:
                    rows = raw.rows if raw else []
                    probabilities, raw_logits = score_bundle(file, sample.inputs, rows, compiled=compiled)
                else:
                    probabilities = score_file(file, sample.inputs)
                checks = agreement(sample, probabilities)
                refuse_disagreement(checks, name, precision, wanted.max_ne_rise)
                if raw is not None and raw_served is not None:
                    checks |= raw_agreement(raw, raw_logits, raw_served)
                    refuse_raw_disagreement(checks, name, precision, compiled=compiled)
            file.replace(wanted.out)
    return {
        "out": str(wanted.out),
        "run": str(run.path),
        "checkpoint": name,
        "precision": precision,
        "calibrated": wanted.calibrated,
        "compiled": wanted.compiled,
        "bytes": wanted.out.stat().st_size,
        "table_bytes_before": 4 * sum(table["rows"] * table["dim"] for table in tables),
        "table_bytes": sum(table["bytes"] for table in tables),
        "inputs": metadata["inputs"],
        "checks": checks,
    }


def _check_file(wanted: Wanted) -> None:
    out = wanted.out
    if out.suffix not in (SUFFIX, BUNDLE_SUFFIX):
        raise UserError(
            f"{out}: the name of an exported model must end in {BUNDLE_SUFFIX} or {SUFFIX}",
            f"{BUNDLE_SUFFIX} scores raw rows, {SUFFIX} is the graph alone",
        )
    if out.exists():
        raise UserError(f"{out} already exists", "choose another file, or remove this one")
    if not out.resolve().parent.is_dir():
        raise UserError(f"{out.parent}: no such directory", f"mkdir -p {out.parent}")
    if wanted.compiled and out.suffix != BUNDLE_SUFFIX:
        raise UserError(f"--format aoti adds code to a bundle, and {out} is a graph", f"-o {out.stem}{BUNDLE_SUFFIX}")
    if wanted.compiled:
        check_compiler()


def _scored(
    config: Config, run: RunDirectory, ranks: Ranks, wanted: Wanted, place: Path | None
) -> tuple[Sample, RawRows | None, Path, Source]:
    """Returns some rows as the checkpoint scores them, its name, and the data.

    Args:
        place: a directory for files, to score raw rows too; None to omit them. The data may have none.
    """
    checkpoint = wanted.checkpoint or "best"
    opened = open_run(config, run, ranks, checkpoint=checkpoint, split="validation", calibrated=wanted.calibrated)
    rows = min(wanted.check_rows, opened.reader.num_examples)
    say(f"scoring {rows:,} validation rows with {opened.checkpoint.name}")
    sample = score_sample(opened.model, opened.reader, rows)
    raw, stored = None, data_place(config.data)
    frame = None if place is None or stored is None else read_raw_sample(described_in(stored))
    if place is not None and frame is None:
        warn(f"{stored} has no raw rows: the bundle is checked on rows that were already read")
    if place is not None and frame is not None:
        raw = score_raw(opened.model, opened.features, frame, place, config.train.batch_size)
    return sample, raw, opened.checkpoint, opened.source


def _served(
    config: Config,
    run: RunDirectory,
    path: Path,
    source: Source,
    precision: str | None,
    calibration: Calibration | None,
) -> ServedModel:
    """Returns the model with its tables as they will be stored, read one after the other."""
    if config.baseline is not None:
        features, tables, network = _baseline_parts(config.baseline, source, path)
        wide = None
    else:
        features = feature_tables(config, source.schema)
        names = [table.name for feature in features for table in feature.tables(config.embeddings.dim)]
        if is_compressed(run.path):
            tables, weights, first_order = read_parts(open_artifact(run.path), names)
        else:
            stored = CheckpointTables(path)
            tables = {name: _stored(stored, name, precision) for name in names}
            weights, first_order = stored.network(), stored.wide()
        network = load_network(config, source.features, weights, path)
        wide = _served_wide(stored_wide(config, source.features, first_order, path))
    slope, bias = (calibration.slope, calibration.bias) if calibration else (1.0, 0.0)
    return ServedModel(
        features,
        tables,
        network,
        num_dense=len(source.schema.dense),
        logit_offset=source.features.logit_offset(),
        averaged=[feature.name for feature in source.schema.sparse if feature.pooling == "mean"],
        weighted=[feature.name for feature in source.schema.sparse if feature.weights is not None],
        wide=wide,
        slope=slope,
        bias=bias,
    ).eval()


def _baseline_parts(
    settings: BaselineSettings, source: Source, path: Path
) -> tuple[Sequence[FeatureTable], Mapping[str, Compressed], nn.Module]:
    """Returns the features of a baseline, their weights as tables with one column, and the rest of the model."""
    model = load_baseline(settings, source.features, model_weights(path), path)
    rows = model.embeddings
    assert isinstance(rows, FirstOrder)
    return rows.features, {name: StoredRows(weight, 1, 32) for name, weight in rows.tables().items()}, model.dense


def _served_wide(stored: StoredWide | None) -> ServedWide | None:
    """Returns the first-order part; its weights stay float32, since a weight shares no scale with others."""
    if stored is None:
        return None
    terms = stored.terms
    return ServedWide(terms.features, stored.tables(1), terms.bucketed, terms.edges_IE)


def _stored(tables: CheckpointTables, name: str, precision: str | None) -> StoredRows:
    weight = tables.weight(name).float()
    return pack(weight, 8) if precision == "int8" else StoredRows(weight, weight.shape[1], 32)


def show_export(result: Mapping[str, Any]) -> None:
    """Prints the file and its checkpoint on standard output."""
    checks = result["checks"]
    rows = [
        (f"tables, {result['precision']}", bytes_text(result["table_bytes_before"]), bytes_text(result["table_bytes"])),
        ("NE", number_text(checks["ne_checkpoint"], 6), number_text(checks["ne_export"], 6)),
    ]
    if checks["ne_rise"] is not None:
        what = "rise of log loss" if checks["ne_checkpoint"] is None else "rise of NE"
        rows.append((what, "", f"{with_error(checks['ne_rise'], checks['ne_rise_se'], '+.4f', scale=100)} %"))
    rows.append(("largest difference of a probability", "", f"{checks['largest_difference']:.1e}"))
    title = f"{result['out']}: {bytes_text(result['bytes'])}, scored {checks['rows']:,} validation rows by torch alone"
    if "raw_rows" in checks:
        what = f"largest difference of a logit, of {checks['raw_rows']:,} raw rows"
        rows.append((what, "", f"{checks['raw_largest_difference']:.1e}"))
    print_table(title, ("", result["checkpoint"], "file"), rows)
    if result["out"].endswith(BUNDLE_SUFFIX):
        more, flag = (", compiled=True", " --compiled") if result["compiled"] else ("", "")
        output.print(f"dlrmctl.serving.Scorer({result['out']!r}{more}).score([{{column: value}}]) gives probabilities")
        output.print(f"dlrmctl serve {result['out']}{flag}")
        return
    for line in _call_lines(result["inputs"], result["out"]):
        output.print(line)


def _call_lines(inputs: Mapping[str, Any], file: str) -> Iterator[str]:
    """Returns the lines of Python that call the file."""
    yield f"torch.export.load({file!r}).module()({', '.join(inputs)}) gives probabilities, float32 [batch]"
    for name in ("dense", "ids"):
        yield f"  {name}: {inputs[name]['type']} [{', '.join(map(str, inputs[name]['shape']))}]"
    if "lists" in inputs:
        one, *more = inputs["lists"]
        others = f" and {len(more)} more" if more else ""
        yield f"  lists: {{{one!r}: int64 [batch, longest]}}{others}; pad shorter lists with -1"
    if "weights" in inputs:
        one, *more = inputs["weights"]
        others = f" and {len(more)} more" if more else ""
        yield f"  weights: {{{one!r}: float32 [batch, longest]}}{others}; in the places of lists"
