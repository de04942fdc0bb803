"""Builds what stands in front of the bottom MLP: dense features as they are, or normalized by the training examples."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from dlrmctl.data.features.dense import FittedDense
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.schema import Schema
from dlrmctl.errors import UserError
from dlrmctl.models.inputs import NormalizedInputs, QuantileInputs, RawInputs, StandardInputs
from dlrmctl.settings.config import AUTO_INPUTS, Config

DenseInputs = RawInputs | NormalizedInputs
RAW_WAYS = "prepare it again from the raw files, or train with --dense-inputs raw"
PREFIX = "inputs."  # of their names among the weights of the dense network


def with_dense_inputs(config: Config, features: FeatureSpace) -> Config:
    """The settings with what "auto" of `dense_inputs` means for data.

    Raises:
        UserError: if dense features are to be normalized and were not fitted.
    """
    kind = config.model.dense_inputs
    if kind == "auto":
        fitted = features.dense or not features.schema.dense
        return config.change(dense_inputs=AUTO_INPUTS if fitted else "raw")
    if kind != "raw":
        check_fitted(features, f"what {kind} dense inputs need", RAW_WAYS)
    return config


def check_fitted(features: FeatureSpace, needs: str, ways: str) -> None:
    """Checks that data has the statistics of dense features, and tells missing values from others.

    Args:
        needs: what is missing otherwise, for the message.
        ways: the hint.

    Raises:
        UserError: if it has not.
    """
    if features.schema.dense and not features.dense:
        where = features.directory or "this data"
        raise UserError(f"{where}: an earlier version prepared it, without {needs}", ways)


def standard_inputs(columns: Sequence[FittedDense], indicated: Sequence[bool]) -> StandardInputs:
    """Inputs with the mean and deviation of the training examples.

    Args:
        indicated: whether each feature has an indicator of missing values.
    """
    return StandardInputs(
        [column.mean for column in columns],
        [column.deviation for column in columns],
        [column.quantile(0) for column in columns],
        [column.quantile(1) for column in columns],
        indicated,
    )


def fitted_inputs(config: Config, features: FeatureSpace, *, indicated: Sequence[bool] | None = None) -> DenseInputs:
    """What the training examples make of the setting `dense_inputs`.

    Args:
        indicated: whether each feature has an indicator; default: those with missing values.

    Raises:
        UserError: as `with_dense_inputs`.
    """
    kind, columns = with_dense_inputs(config, features).model.dense_inputs, features.dense
    if kind == "raw" or not columns:
        return RawInputs(features.stand_ins())
    indicated = [column.missing > 0 for column in columns] if indicated is None else indicated
    if kind == "standard":
        return standard_inputs(columns, indicated)
    return QuantileInputs(
        [column.values for column in columns], [column.normal_scores() for column in columns], indicated
    )


def inputs_like(features: FeatureSpace, weights: Mapping[str, Tensor]) -> DenseInputs:
    """Inputs that the weights of a dense network fit; their numbers are still to be loaded.

    Args:
        features: of the data that is to be scored; what the weights were trained on may have been fitted otherwise.

    Raises:
        UserError: if the weights normalize, and the data does not tell missing values from others.
    """
    found = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
    if not found:
        return RawInputs(features.stand_ins())
    check_fitted(features, "what normalized dense inputs need", RAW_WAYS)
    indicated = found["indicated_I"].bool().tolist()
    if "mean_I" in found:
        zeros = [0.0] * len(indicated)
        return StandardInputs(zeros, zeros, zeros, zeros, indicated)
    knots = [[0.0] * found["knots_IK"].shape[1]] * len(indicated)
    return QuantileInputs(knots, knots, indicated)


def unfitted_inputs(config: Config, schema: Schema) -> DenseInputs:
    """Inputs of the right shapes for data of a schema, for plans and measurements."""
    kind, num_dense = config.model.dense_inputs, len(schema.dense)
    if kind == "raw" or not num_dense:
        return RawInputs([0.0] * num_dense)
    zeros, indicated = [0.0] * num_dense, [name in schema.gaps for name in schema.dense]
    if kind == "standard":
        return StandardInputs(zeros, zeros, zeros, zeros, indicated)
    return QuantileInputs([[]] * num_dense, [[]] * num_dense, indicated)
