"""`dlrmctl export` behind its flags: a checkpoint to a file that was held against the checkpoint's own scores.

Dimensions: N rows.
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlrmctl.build import build_dense_network, feature_tables
from dlrmctl.compress.model import is_compressed, load_model, load_network, open_artifact
from dlrmctl.compress.request import check_output
from dlrmctl.compress.sources import CheckpointTables
from dlrmctl.config import Config
from dlrmctl.console import bytes_text, output, print_table, say
from dlrmctl.datasets import logit_offset
from dlrmctl.errors import UserError
from dlrmctl.evaluate import Opened, open_run
from dlrmctl.export.graph import ServedModel
from dlrmctl.export.metadata import describe
from dlrmctl.export.program import place_beside, score, score_file, to_program, write_program
from dlrmctl.export.sample import Sample, score_sample
from dlrmctl.paired import compare_scores
from dlrmctl.ranks import Ranks
from dlrmctl.rundir import RunDirectory
from embeddings.compression.pack import pack
from embeddings.compression.rules import Compressed, Rows

SUFFIX = ".pt2"
# A thousand roundings of float32, all in one direction, on a logit; the sigmoid's slope is at most 1/4.
ROUNDING = 1000 * 2**-24 / 4


@dataclass(frozen=True)
class Wanted:
    """What is to be written.

    Attributes:
        precision: of the tables, "fp32" or "int8"; None as they are: float32 of a run, and what a compressed model has.
        check_rows: of the validation split, at most.
        max_ne_rise: relative; for "int8".
    """

    out: Path
    checkpoint: str
    precision: str | None
    check_rows: int
    max_ne_rise: float


def export(config: Config, run: RunDirectory, ranks: Ranks, wanted: Wanted) -> dict[str, Any]:
    """Writes the model of a run, or a compressed one, as a program of torch.export.

    Memory: the tables twice, as evaluation holds them and then as the file does.

    Returns:
        What was written and how it scores.

    Raises:
        UserError, DataError: if something is not there or does not fit, or the file's scores are not the
            checkpoint's; then no file is left.
    """
    if wanted.out.suffix != SUFFIX:
        raise UserError(f"{wanted.out}: an exported model is a file ending in {SUFFIX}")
    check_output(wanted.out)
    if wanted.precision is not None and is_compressed(run.path):
        raise UserError(
            f"--precision {wanted.precision}: the tables of {run.path} are compressed, and exported as they are",
            "leave --precision out, or export the run they were made from",
        )
    exact = replace(config, train=replace(config.train, precision="fp32"))
    opened = open_run(exact, run, ranks, checkpoint=wanted.checkpoint, split="validation")
    name, source = opened.checkpoint.name, opened.source
    say(f"scoring {min(wanted.check_rows, opened.reader.num_examples):,} validation rows with {name}")
    sample = score_sample(opened.inference, opened.reader, wanted.check_rows)
    model = _served(exact, run, opened, wanted.precision)
    precision = wanted.precision or ("as compressed" if is_compressed(run.path) else "fp32")
    checks = _checks(sample, score(model, sample.inputs))
    _hold(checks, name, wanted)
    origin = {"run": run.path.name, "checkpoint": name, "precision": precision, "data": source.fingerprint()}
    metadata = describe(model, source, config, origin) | {"checks": checks}
    with place_beside(wanted.out) as place:
        say("tracing the graph and writing it")
        file = place / wanted.out.name
        write_program(to_program(model), file, metadata)
        tables = list(metadata["tables"].values())
        del model
        gc.collect()
        say("scoring the rows with the file, in a process that has torch alone")
        checks = _checks(sample, score_file(file, sample.inputs))
        _hold(checks, name, wanted)
        file.replace(wanted.out)
    return {
        "out": str(wanted.out),
        "run": str(run.path),
        "checkpoint": name,
        "precision": precision,
        "bytes": wanted.out.stat().st_size,
        "table_bytes": sum(table["bytes"] for table in tables),
        "table_rows": sum(table["rows"] for table in tables),
        "inputs": metadata["inputs"],
        "checks": checks,
    }


def _served(config: Config, run: RunDirectory, opened: Opened, precision: str | None) -> ServedModel:
    """The model with its tables read again, as they will be stored; evaluation's are let go before."""
    path, source = opened.checkpoint, opened.source
    features, cpu = feature_tables(config, source.schema), torch.device("cpu")
    names = [table.name for feature in features for table in feature.tables(config.embeddings.dim)]
    tables: Mapping[str, Compressed]
    if is_compressed(run.path):
        artifact = open_artifact(run.path)
        network = load_model(run.path, artifact, config, source.schema, cpu).dense
        tables = {name: artifact.read(name) for name in names}
    else:
        stored = CheckpointTables(path)
        network = build_dense_network(config, source.schema, cpu)
        load_network(network, stored.network(), path)
        tables = {name: _stored(stored, name, precision) for name in names}
    num_dense, offset = len(source.schema.dense), logit_offset(source, None)
    return ServedModel(features, tables, network, num_dense=num_dense, logit_offset=offset).eval()


def _stored(tables: CheckpointTables, name: str, precision: str | None) -> Rows:
    weight = tables.weight(name).float()
    return pack(weight, 8) if precision == "int8" else Rows(weight, weight.shape[1], 32)


def _checks(sample: Sample, probabilities_N: np.ndarray) -> dict[str, Any]:
    """How these probabilities differ from the checkpoint's on the same rows."""
    own_N = torch.from_numpy(sample.logits_N).sigmoid().numpy()
    logits_N = torch.from_numpy(probabilities_N).double().logit(eps=2.0**-26).numpy()
    found = compare_scores(sample.logits_N, logits_N, sample.labels_N)
    ne = found.get("ne")
    return {
        "rows": len(sample),
        "largest_difference": float(np.abs(probabilities_N - own_N).max()),
        "ne_checkpoint": ne.a if ne else None,
        "ne_export": ne.b if ne else None,
        "ne_rise": ne.difference / ne.a if ne else None,
        "ne_rise_se": ne.se / ne.a if ne else None,
    }


def _hold(checks: Mapping[str, Any], checkpoint: str, wanted: Wanted) -> None:
    """
    Raises:
        UserError: if the scores differ by more than the precision allows.
    """
    difference, rise = checks["largest_difference"], checks["ne_rise"]
    if wanted.precision != "int8":
        if not difference <= ROUNDING:
            raise UserError(
                f"the exported model differs from {checkpoint} by {difference:.2g} in a probability; rounding explains "
                f"{ROUNDING:.2g}"
            )
    elif rise is not None and not rise <= wanted.max_ne_rise:
        raise UserError(
            f"int8 raises the NE of {checkpoint} by {100 * rise:.3g} %, more than {100 * wanted.max_ne_rise:g} %",
            "--precision fp32, or a larger --max-ne-increase",
        )


def show_export(result: Mapping[str, Any]) -> None:
    """What was written, on standard output."""
    checks = result["checks"]
    rows = [
        ("file", f"{result['out']}, {bytes_text(result['bytes'])}"),
        ("tables", f"{result['table_rows']:,} rows, {result['precision']}, {bytes_text(result['table_bytes'])}"),
        ("checked on", f"{checks['rows']:,} validation rows, by torch alone"),
        ("largest difference", f"{checks['largest_difference']:.2g} in a probability"),
    ]
    if checks["ne_rise"] is not None:
        rise = f"{100 * checks['ne_rise']:+.4f} ±{100 * checks['ne_rise_se']:.4f} %"
        rows.append(
            ("NE", f"{checks['ne_checkpoint']:.6f} {result['checkpoint']}, {checks['ne_export']:.6f} file, {rise}")
        )
    print_table(f"Exported {result['checkpoint']} of {result['run']}", ("", ""), rows)
    output.print(call_text(result["inputs"]))


def call_text(inputs: Mapping[str, Any]) -> str:
    """How the file is called, in Python."""
    names = ["dense", "ids", *(["lists"] if "lists" in inputs else [])]
    shapes = [f"{name} {inputs[name]['type']} {inputs[name]['shape']}".replace("'", "") for name in names[:2]]
    lists = ["lists {name: int64 [batch, up to its longest]}, filled up with -1"] if "lists" in inputs else []
    return f"model = torch.export.load(FILE).module(); model({', '.join(names)}): {'; '.join(shapes + lists)}"
