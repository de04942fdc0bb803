"""Builds the first-order part of the model: its features, the buckets of dense features, and its stored weights.

Stored weights are tensors by name: "TABLE/weight", float32 [rows], and "edges".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from dlrmctl.assembly.inputs import RAW_WAYS, check_fitted
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.schema import Schema
from dlrmctl.embeddings.compression.composed import StoredWeights
from dlrmctl.embeddings.compression.rules.rows import StoredRows
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.embeddings.wide import BUCKETS, WIDTH, Wide, padded_edges, wide_features
from dlrmctl.errors import UserError
from dlrmctl.settings.config import Config

EDGES = "edges"
OTHER_MODEL = "the model and embedding settings must be those it was trained with"


@dataclass(frozen=True)
class WideTerms:
    """The features with first-order weights, and the dense ones among them with the edges of their buckets."""

    features: list[FeatureTable]
    bucketed: tuple[str, ...]
    edges_IE: Tensor


def wide_terms(config: Config, features: FeatureSpace) -> WideTerms:
    """The first-order terms of the settings and the data; without buckets if dense features were not fitted."""
    edges = padded_edges([column.edges(BUCKETS) for column in features.dense])
    bucketed = tuple(column.name for column in features.dense)
    return WideTerms(wide_features(feature_tables(config, features.schema), bucketed), bucketed, edges)


def unfitted_wide_features(config: Config, schema: Schema) -> list[FeatureTable]:
    """The features of the first-order terms for data of a schema, for plans."""
    return wide_features(feature_tables(config, schema), schema.dense)


@dataclass(frozen=True)
class StoredWide:
    """The stored weights of the first-order part, with what they belong to."""

    terms: WideTerms
    weights: dict[str, Tensor]

    def tables(self, dim: int) -> dict[str, StoredRows]:
        """Returns the weights as tables whose other columns are 0."""
        return {
            name: StoredRows(functional.pad(weights_R.unsqueeze(1), (0, dim - 1)), dim, 32)
            for name, weights_R in self.weights.items()
        }

    def module(self) -> Wide:
        """Returns the first-order part with plain lookups."""
        terms = self.terms
        return Wide(StoredWeights(terms.features, self.tables(WIDTH)), terms.bucketed, terms.edges_IE)


def stored_wide(
    config: Config, features: FeatureSpace, tensors: Mapping[str, Tensor], where: Path
) -> StoredWide | None:
    """The first-order part of a trained model; None if the settings have none.

    Args:
        features: of the data that is to be scored.
        tensors: as stored.
        where: they come from, for messages.

    Raises:
        UserError: if they are not of the model that the settings describe, or belong to buckets, and the data does not
            tell missing values from others.
    """
    if not config.model.wide:
        return None
    weights = {name.removesuffix("/weight"): value for name, value in tensors.items() if name != EDGES}
    schema = features.schema
    bucketed = schema.dense if any(name in weights for name in schema.dense) else ()
    if bucketed:
        check_fitted(features, "what bucketed dense inputs need", RAW_WAYS)
    described = wide_features(feature_tables(config, schema), bucketed)
    wanted: dict[str, tuple[int, ...]] = {EDGES: (len(bucketed), BUCKETS - 1)}
    wanted |= {f"{table.name}/weight": (table.rows,) for feature in described for table in feature.tables(WIDTH)}
    if {name: tuple(value.shape) for name, value in tensors.items()} != wanted:
        raise UserError(f"{where} does not fit this model: its first-order weights are of other features", OTHER_MODEL)
    return StoredWide(WideTerms(described, bucketed, tensors[EDGES]), weights)
