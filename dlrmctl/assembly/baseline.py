"""Builds the model of a baseline, a logistic regression, from its settings and the data."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from dlrmctl.assembly.inputs import check_fitted, standard_inputs
from dlrmctl.console.text import last_line
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.schema import Schema
from dlrmctl.embeddings.first_order import FirstOrder
from dlrmctl.embeddings.tables import FeatureTable
from dlrmctl.embeddings.wide import BUCKETS
from dlrmctl.errors import UserError
from dlrmctl.models import DLRM
from dlrmctl.models.inputs import StandardInputs
from dlrmctl.models.logistic import BucketLogits, Buckets, LinearLogits, LogisticNetwork
from dlrmctl.settings.baseline import BaselineSettings

_NEEDS = ("the statistics of dense features that a baseline needs", "prepare it again from the raw files")


def first_order_tables(settings: BaselineSettings, schema: Schema) -> list[FeatureTable]:
    """Returns one table for each sparse feature; the largest are hashed if there are more than `max_features` ids.

    Raises:
        UserError: if there are more sparse features than `max_features`.
    """
    rows = [feature.rows for feature in schema.sparse]
    most = _most_rows(rows, settings.max_features)
    if rows and not most:
        raise UserError(
            f"baseline.max_features = {settings.max_features} is below the number of sparse features, {len(rows)}",
            "--max-features with a larger number",
        )
    return [_table(feature.name, feature.rows, feature.max_ids, most) for feature in schema.sparse]


def _most_rows(rows: Sequence[int], total: int) -> int:
    """The largest number of rows of a table with which all tables together have at most `total`."""
    left, most = total, 0
    for done, size in enumerate(sorted(rows)):
        most = left // (len(rows) - done)
        if size > most:
            return most
        left -= size
    return max(rows, default=0)


def _table(name: str, rows: int, max_ids: int, most: int) -> FeatureTable:
    if rows <= most:
        return FeatureTable(name, rows, max_ids)
    return FeatureTable(name, rows, max_ids, "hash", collisions=-(-rows // most))


def build_baseline(settings: BaselineSettings, features: FeatureSpace) -> DLRM:
    """Builds the model with all weights 0.

    Args:
        features: of the training data.

    Raises:
        UserError: if the dense features were not fitted, or there are too many sparse ones.
    """
    check_fitted(features, *_NEEDS)
    columns = features.dense
    if settings.dense == "raw":
        indicated = [column.missing > 0 for column in columns]
        dense: BucketLogits | LinearLogits = LinearLogits(standard_inputs(columns, indicated))
    else:
        dense = BucketLogits(Buckets([column.edges(BUCKETS) for column in columns]))
    return DLRM(FirstOrder(first_order_tables(settings, features.schema)), LogisticNetwork(dense))


def load_baseline(
    settings: BaselineSettings, features: FeatureSpace, weights: Mapping[str, Tensor], where: Path
) -> DLRM:
    """Loads the model of a finished baseline.

    Args:
        features: of the data that is to be scored.
        weights: by name, as in the state of the model.
        where: they come from, for messages.

    Raises:
        UserError: if the weights are not of the model that the settings describe, or the data does not fit.
    """
    check_fitted(features, *_NEEDS)
    if settings.dense == "raw":
        indicated = weights["dense.dense.inputs.indicated_I"].bool().tolist()
        zeros = [0.0] * len(indicated)
        dense: BucketLogits | LinearLogits = LinearLogits(StandardInputs(zeros, zeros, zeros, zeros, indicated))
    else:
        edges_IE = weights["dense.dense.buckets.edges_IE"]
        dense = BucketLogits(Buckets([edges[edges.isfinite()].tolist() for edges in edges_IE]))
    model = DLRM(FirstOrder(first_order_tables(settings, features.schema)), LogisticNetwork(dense))
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as problem:
        raise UserError(f"{where} does not fit this data: {last_line(problem)}") from None
    return model
