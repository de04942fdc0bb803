"""Compressed tables beside their dense network: written as a directory that opens like a run, and opened again.

OUT/manifest.json, tables-*.safetensors   the tables; see `embeddings.compression.artifact`
    dense.safetensors                     the dense network
    run.toml                              the settings of the run it came from
    report.json                           what the compression cost
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dlrmctl.assembly.model import build_dense_network
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.data.schema import Schema
from dlrmctl.embeddings.compression.artifact import FORMAT, Artifact
from dlrmctl.embeddings.compression.composed import compose
from dlrmctl.errors import UserError
from dlrmctl.models import DLRM, DenseNetwork
from dlrmctl.settings.config import Config

DENSE_FILE = "dense.safetensors"
MANIFEST = "manifest.json"
REPORT = "report.json"


def is_compressed(path: Path) -> bool:
    """Whether a directory holds compressed tables."""
    manifest = path / MANIFEST
    return manifest.is_file() and FORMAT in manifest.read_text(errors="replace")[:200]


def open_artifact(path: Path) -> Artifact:
    """The compressed tables in a directory, held against their checksums.

    Raises:
        UserError: if they are damaged or of another version.
    """
    try:
        return Artifact(path)
    except ValueError as problem:
        raise UserError(str(problem), "compress the checkpoint again") from None


def load_model(path: Path, artifact: Artifact, config: Config, schema: Schema, device: torch.device) -> DLRM:
    """The whole model for evaluation.

    Raises:
        UserError: if it was made from tensors alone, or for other features than the data has.
    """
    if artifact.source.get("kind") != "checkpoint":
        raise UserError(f"{path}: holds tables without a model, so it cannot be evaluated")
    features = feature_tables(config, schema)
    try:
        names = [table.name for feature in features for table in feature.tables(config.embeddings.dim)]
        tables = {name: artifact.read(name) for name in names}
        embeddings = compose(features, config.embeddings.dim, tables)
    except ValueError as problem:
        raise UserError(f"{path}: does not fit this data: {problem}") from None
    network = build_dense_network(config, schema, torch.device("cpu"))
    load_network(network, load_file(path / DENSE_FILE), path)
    return DLRM(embeddings, network).to(device)


def load_network(network: DenseNetwork, weights: Mapping[str, Tensor], path: Path) -> None:
    """Fills the dense network.

    Raises:
        UserError: if the weights are of another shape.
    """
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as problem:
        raise UserError(f"{path}: does not fit this model: {str(problem).splitlines()[-1].strip()}") from None
