"""Builds the dense half of the model, and a whole model for scoring without TorchRec."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dlrmctl.assembly.inputs import DenseInputs, inputs_like, unfitted_inputs
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.assembly.wide import OTHER_MODEL, stored_wide
from dlrmctl.console.text import last_line
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.schema import Schema
from dlrmctl.embeddings.compression.composed import compose
from dlrmctl.embeddings.compression.rules.rows import Compressed
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.errors import UserError
from dlrmctl.models import DLRM, DenseNetwork
from dlrmctl.settings.config import CROSS_LAYERS, CROSS_RANK, Config


def build_dense_network(
    config: Config,
    schema: Schema,
    device: torch.device,
    inputs: DenseInputs | None = None,
    base_rate: float | None = None,
) -> DenseNetwork:
    """Builds the dense half with its initial values, which depend on the seed alone.

    Args:
        device: "meta" gives shapes without memory or values.
        inputs: the transform of the dense features; None means one with the shapes of the settings' choice.
        base_rate: whose logit is the first bias of the top MLP; None for a random one.
    """
    with torch.device("meta") if device.type == "meta" else torch.device("cpu"):
        network = DenseNetwork(
            num_dense=len(schema.dense),
            num_vectors=sum(table.vectors for table in feature_tables(config, schema)),
            dim=config.embeddings.dim,
            bottom=config.model.bottom_mlp,
            top=config.model.top_mlp,
            interaction=config.model.interaction,
            cross_layers=config.model.cross_layers or CROSS_LAYERS,
            cross_rank=config.model.cross_rank or CROSS_RANK,
            layer_norm=config.model.layer_norm,
            dropout=config.model.dropout,
            inputs=inputs or unfitted_inputs(config, schema),
            first_logit=None if base_rate is None else math.log(base_rate / (1 - base_rate)),
            generator=None if device.type == "meta" else torch.Generator().manual_seed(config.train.seed),
        )
    return network.to(device)


class Bfloat16Network(nn.Module):
    """A dense half under autocast, as in training with the precision "bf16"; its logits are float32."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self._device_type = device.type

    def forward(self, dense_BI: Tensor, embeddings_BFD: Tensor) -> Tensor:
        with torch.autocast(self._device_type, dtype=torch.bfloat16):
            logits_B: Tensor = self.network(dense_BI, embeddings_BFD)
        return logits_B.float()


def scoring_model(
    embeddings: nn.Module, network: nn.Module, precision: str, device: torch.device, wide: nn.Module | None = None
) -> DLRM:
    """Returns the model for scoring, which computes logits as training with this precision does."""
    return DLRM(embeddings, Bfloat16Network(network, device) if precision == "bf16" else network, wide)


def stored_model(
    config: Config,
    features: FeatureSpace,
    feature_tables: Sequence[FeatureTable],
    tables: Mapping[str, Compressed],
    weights: Mapping[str, Tensor],
    first_order: Mapping[str, Tensor],
    device: torch.device,
    where: Path,
) -> DLRM:
    """Loads a trained model with plain lookups, without optimizer state.

    Args:
        features: of the data that is to be scored.
        feature_tables: of its sparse features, by the settings.
        tables: one for each table of these, by its name.
        weights: of the dense half.
        first_order: weights of the first-order part, as stored; empty if it has none.
        where: origin of the tables and weights, for messages.

    Raises:
        UserError: if tables or weights are not of the model that the settings describe.
    """
    network = load_network(config, features, weights, where)
    try:
        embeddings = compose(feature_tables, config.embeddings.dim, tables)
    except ValueError as problem:
        raise UserError(f"{where} does not fit this model: {problem}", OTHER_MODEL) from None
    wide = stored_wide(config, features, first_order, where)
    module = None if wide is None else wide.module()
    return scoring_model(embeddings, network, config.train.precision, device, module).to(device)


def load_network(config: Config, features: FeatureSpace, weights: Mapping[str, Tensor], where: Path) -> DenseNetwork:
    """The dense half of a trained model, in main memory.

    Args:
        features: of the data that is to be scored.
        weights: of the dense half.
        where: they come from, for messages.

    Raises:
        UserError: if the weights are of another shape, or the data does not fit them.
    """
    inputs = inputs_like(features, weights)
    network = build_dense_network(config, features.schema, torch.device("cpu"), inputs)
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as problem:
        raise UserError(f"{where} does not fit this model: {last_line(problem)}", OTHER_MODEL) from None
    return network
