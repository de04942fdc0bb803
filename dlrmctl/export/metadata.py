"""Describes an exported model for its server, as plain values in the file."""

from collections.abc import Mapping
from typing import Any

import torch

from dlrmctl.data.schema import MISSING_ROW, RARE_ROW, Schema
from dlrmctl.data.source import Source
from dlrmctl.embeddings.compression.rules.rows import Compressed
from dlrmctl.export.graph import PADDING, ServedModel
from dlrmctl.settings.config import Config

FORMAT = "dlrmctl-export/1"


def describe(model: ServedModel, source: Source, config: Config, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Describes the inputs and how to make them, the tables, and the origin of the weights.

    Args:
        origin: run, checkpoint, precision.
    """
    transform = source.features.dense_transform
    return {
        "format": FORMAT,
        **origin,
        "inputs": _inputs(source.schema),
        "output": {"shape": ["batch"], "type": "float32", "is": "the probability of label 1"},
        # The server applies this to raw numbers before the call.
        "dense_transform": transform.to_dict() if transform else None,
        "ids": _ids(source),
        "logit_offset": model.logit_offset,
        "model": _model(config),
        "features": [feature.to_dict() for feature in model.features],
        "tables": {name: _table(table) for name, table in model.lookups.named_tables()},
        "torch": torch.__version__,
    }


def _model(config: Config) -> dict[str, Any]:
    sections = config.to_dict()
    if config.baseline is not None:
        return {"kind": "logistic regression", **sections["baseline"]}
    return sections["model"] | {"dim": config.embeddings.dim}


def _inputs(schema: Schema) -> dict[str, Any]:
    """Returns the inputs by the names of the graph's arguments, in their order."""
    ones = [feature for feature in schema.sparse if feature.max_ids == 1]
    lists = [feature for feature in schema.sparse if feature.max_ids > 1]
    inputs: dict[str, Any] = {
        "dense": {
            "shape": ["batch", len(schema.dense)],
            "type": "float32",
            "columns": list(schema.dense),
            "not_rounded": list(schema.float32),  # to the type of the transform
        },
        "ids": {
            "shape": ["batch", len(ones)],
            "type": "int64",
            "columns": [{"name": feature.name, "rows": feature.rows} for feature in ones],
        },
    }
    if lists:
        inputs["lists"] = {
            feature.name: {
                "shape": ["batch", f"1 to {feature.max_ids}"],
                "type": "int64",
                "rows": feature.rows,
                "padding": PADDING,
            }
            for feature in lists
        }
    weighted = [feature for feature in lists if feature.weights is not None]
    if weighted:
        inputs["weights"] = {
            feature.name: {"shape": ["batch", f"1 to {feature.max_ids}"], "type": "float32", "column": feature.weights}
            for feature in weighted
        }
    return inputs


def _ids(source: Source) -> dict[str, Any]:
    """Describes the rules by which raw values become ids."""
    return {
        "missing": MISSING_ROW,
        "rare": RARE_ROW,
        "vocabulary": source.vocabulary_fingerprint(),
        "values": source.features.values,
        "columns": [column.to_dict() for column in source.features.columns] or None,
    }


def _table(table: Compressed) -> dict[str, Any]:
    spec = table.spec()
    stored = {32: "float32", 16: "float16"}.get(spec.get("bits", 0), f"int{spec.get('bits')}")
    return {
        "rows": table.num_rows,
        "dim": table.dim,
        "stored": stored if table.rule == "rows" else table.rule,
        "bytes": table.num_bytes,
    }
