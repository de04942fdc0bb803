"""The schema in kept features, read without NumPy and without the rest."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dlrmctl.data.errors import DataError
from dlrmctl.data.schema import Schema
from dlrmctl.data.sealed import Values, read_sealed

FORMAT = "dlrmctl-features/1"
FEATURES = "features.json"
_WHAT = "features that were kept of a data set"
_HOW = "`FeatureSpace.save` writes them"
_AGAIN = "save them again from the data set"
_Content = TypeVar("_Content")


def kept_schema(directory: Path) -> Schema:
    """Returns the schema of the features that `FeatureSpace.save` wrote.

    Raises:
        DataError: see `read_features`.
    """
    return read_features(directory, lambda values: Schema.from_dict(values.inner("schema").entries))


def read_features(directory: Path, parse: Callable[[Values], _Content]) -> _Content:
    """Parses the file that says what the features are.

    Raises:
        DataError: if there is none, or it has another version, was edited or is damaged.
    """
    if not (directory / FEATURES).is_file():
        raise DataError(f"{directory}: no {FEATURES}, so not {_WHAT}", _HOW)
    return read_sealed(directory / FEATURES, (FORMAT,), parse, what=_WHAT, hint=_HOW, again=_AGAIN)
