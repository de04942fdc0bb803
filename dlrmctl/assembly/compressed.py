"""Compressed tables with their dense network: a directory that opens like a run.

OUT/manifest.json, tables-*.safetensors   the tables; see `embeddings.compression.artifact`
    dense.safetensors                     the dense network
    wide.safetensors                      the first-order weights of a model that has them
    run.toml                              the settings of the run it came from
    report.json                           what the compression cost
    calibration.json                      see `rundir.calibration`
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dlrmctl.assembly.network import stored_model
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.embeddings.compression.artifact import FORMAT, Artifact
from dlrmctl.embeddings.compression.rules.rows import Compressed
from dlrmctl.errors import UserError
from dlrmctl.models import DLRM
from dlrmctl.settings.config import Config

DENSE_FILE = "dense.safetensors"
WIDE_FILE = "wide.safetensors"
MANIFEST = "manifest.json"
REPORT = "report.json"


def is_compressed(path: Path) -> bool:
    """Returns whether a directory has compressed tables."""
    manifest = path / MANIFEST
    return manifest.is_file() and FORMAT in manifest.read_text(errors="replace")[:200]


def open_artifact(path: Path) -> Artifact:
    """Opens the compressed tables in a directory, and verifies their checksums.

    Raises:
        UserError: if they are damaged or have another version.
    """
    try:
        return Artifact(path)
    except ValueError as problem:
        raise UserError(str(problem), "compress the checkpoint again") from None


def load_model(path: Path, artifact: Artifact, config: Config, features: FeatureSpace, device: torch.device) -> DLRM:
    """Loads the whole model for evaluation.

    Raises:
        UserError: if it was made from tensors without a model, or for other features than the data's.
    """
    if artifact.source.get("kind") != "checkpoint":
        raise UserError(f"{path} has tables without a model, so it cannot be evaluated")
    described = feature_tables(config, features.schema)
    names = [table.name for feature in described for table in feature.tables(config.embeddings.dim)]
    tables, network, wide = read_parts(artifact, names)
    return stored_model(config, features, described, tables, network, wide, device, path)


def read_parts(
    artifact: Artifact, names: Sequence[str]
) -> tuple[dict[str, Compressed], dict[str, Tensor], dict[str, Tensor]]:
    """Reads the tables of these names, the weights of the dense network, and those of the first-order part, if any.

    Raises:
        UserError: if one is missing or damaged.
    """
    try:
        wide = artifact.read_tensors(WIDE_FILE) if (artifact.path / WIDE_FILE).exists() else {}
        return {name: artifact.read(name) for name in names}, artifact.read_tensors(DENSE_FILE), wide
    except ValueError as problem:
        raise UserError(f"{artifact.path} does not fit this data: {problem}") from None
