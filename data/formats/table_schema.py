"""The schema of a user's tables, read from a TOML file: label, dense and sparse columns.

Errors name the wrong key.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.transforms import MISSING, TRANSFORMS

TRUNCATIONS = ("reject", "first", "last")
TYPES = ("string", "integer")
_OPERATORS = (">=", "<=", ">", "<")
_DENSE_KEYS = ("transform", "missing", "missing_value")
_SPARSE_KEYS = ("max_ids", "truncate", "type", "missing")
_TOP_KEYS = (
    *("label", "label_positive", "dense", "sparse", "columns", "transform", "missing", "missing_value"),
    *("separator", "quote", "list_separator"),
)
CANONICAL = "canonical-1"  # the rule of `data.canonical`
BY_TYPE = "by-type"  # of stores of earlier versions: values are identified by the type of their column
NOTHING = ("NaN", "nan", "NAN", "null", "Null", "NULL")  # always missing, as is an empty text
LARGEST_DENSE = 65504.0  # of float16


@dataclass(frozen=True)
class DenseColumn:
    """Attributes:
    transform: a key of `TRANSFORMS`.
    missing: texts of missing values.
    missing_value: stand-in for a missing value, after the transform, for a model that takes values as they are.
    """

    name: str
    transform: str = "log"
    missing: tuple[str, ...] = ()
    missing_value: float = MISSING


@dataclass(frozen=True)
class SparseColumn:
    """Attributes:
    max_ids: longest list; 1 for a column of single values.
    truncate: one of `TRUNCATIONS`, for longer lists.
    type: one of `TYPES`; None takes the table's.
    missing: texts of missing values.
    """

    name: str
    max_ids: int = 1
    truncate: str = "reject"
    type: str | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableSchema:
    """The content of a schema file.

    Attributes:
        name: name of the file, for messages.
        positive: texts of the labels that are positive; None for 0/1 and true/false.
        threshold: an operator and a number, for labels that are numbers.
        separator: None depends on the name of a file.
        values: the rule that identifies values: `CANONICAL`, or `BY_TYPE`.
    """

    name: str
    label: str
    dense: tuple[DenseColumn, ...]
    sparse: tuple[SparseColumn, ...]
    positive: tuple[str, ...] | None = None
    threshold: tuple[str, float] | None = None
    separator: str | None = None
    quote: str = '"'
    list_separator: str = "|"
    values: str = CANONICAL

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns that are read: label, dense, sparse."""
        return (self.label, *(column.name for column in self.dense), *(column.name for column in self.sparse))

    @property
    def rule(self) -> str | None:
        """`values`, or None for that of the first versions, which had no name."""
        return None if self.values == BY_TYPE else self.values

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON, without the name of the file."""
        return {key: value for key, value in asdict(self).items() if key != "name"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str) -> "TableSchema":
        """Parses what `to_dict` returned, where JSON may have made lists of tuples.

        Args:
            name: its origin, for messages.

        Raises:
            DataError: if it is not a schema.
        """
        rule = values.get("values", BY_TYPE)
        if rule not in (CANONICAL, BY_TYPE):
            raise DataError(f"its values are {rule!r}, this version reads {CANONICAL!r}: prepare it again")
        try:
            kept = {
                **values,
                "values": rule,
                "dense": tuple(DenseColumn(**_with_tuples(column)) for column in values["dense"]),
                "sparse": tuple(SparseColumn(**_with_tuples(column)) for column in values["sparse"]),
            }
            return cls(name=name, **_with_tuples(kept))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not the schema of a table: {error!r}") from error


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def read_schema(content: Mapping[str, Any], name: str, *, values: str = CANONICAL) -> TableSchema:
    """Parses the values of a TOML file.

    Args:
        content: content of the file.
        name: name of the file, for messages.
        values: the rule that identifies values, given by the model that reads them.

    Raises:
        DataError: naming the key that is wrong.
    """
    top = Section(content, f"{name}: ")
    top.check_keys(_TOP_KEYS)
    label = top.text("label", None)
    dense, sparse = top.texts("dense", ()), top.texts("sparse", ())
    names = [label, *dense, *sparse]
    if twice := next((column for column in names if names.count(column) > 1), None):
        raise DataError(f"{name}: the column {twice!r} is repeated", "a column is either label, dense or sparse")
    if not sparse:
        raise DataError(f"{name}: sparse is missing", 'name at least one column of ids: sparse = ["user"]')
    own = Section(top.table("columns"), f"{name}: columns.")
    for column in own.values:
        if column not in names[1:]:
            raise DataError(f"{name}: columns.{column} is neither dense nor sparse", nearest(column, names[1:]))
    positive, threshold = _positive(top)
    return TableSchema(
        name=name,
        label=label,
        dense=tuple(_dense(column, own, top, values) for column in dense),
        sparse=tuple(_sparse(column, own, top, values) for column in sparse),
        positive=positive,
        threshold=threshold,
        separator=top.character("separator", None),
        quote=top.character("quote", '"', empty=True) or "",
        list_separator=top.character("list_separator", "|") or "|",
        values=values,
    )


@dataclass(frozen=True)
class Section:
    """A table of the file, and the prefix of its keys in messages."""

    values: Mapping[str, Any]
    where: str

    def check_keys(self, known: Iterable[str], of: str = "a schema") -> None:
        for key in self.values:
            if key not in known:
                keys = f"the keys are {', '.join(known)}"
                close = nearest(key, known)
                raise DataError(f"{self.where}{key} is not a key of {of}", f"{close} {keys}" if close else keys)

    def table(self, key: str) -> Mapping[str, Any]:
        return self._as(key, self.values.get(key, {}), dict, "a table of keys")

    def section(self, key: str) -> "Section":
        return Section(self.table(key), f"{self.where}{key}.")

    def text(self, key: str, default: str | None) -> str:
        if key not in self.values and default is None:
            raise DataError(f"{self.where}{key} is missing", f'set {key} = "..." to the name of a column')
        return self._as(key, self.values.get(key, default), str, "a string")

    def texts(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        values = self._as(key, self.values.get(key, list(default)), list, "a list of names")
        return tuple(self._as(key, value, str, "a list of names") for value in values)

    def words(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """Returns one value or a list, each as written in a file."""
        value = self.values.get(key, list(default))
        found = value if isinstance(value, list) else [value]
        for item in found:
            if not isinstance(item, str | int | float):
                raise DataError(f"{self.where}{key} = {value!r} must be a value or a list of values")
        return tuple(str(item).lower() if isinstance(item, bool) else str(item) for item in found)

    def choice(self, key: str, default: str | None, choices: Iterable[str]) -> str | None:
        value = self.values.get(key, default)
        if isinstance(value, str) and value.lower() in choices:
            return value.lower()
        if value is not None:
            raise DataError(
                f"{self.where}{key} = {value!r} must be one of {', '.join(choices)}", nearest(str(value), choices)
            )
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_DENSE:
            raise DataError(f"{self.where}{key} = {value!r} must be a number, at most {LARGEST_DENSE:.0f}")
        return float(value)

    def character(self, key: str, default: str | None, *, empty: bool = False) -> str | None:
        value = self.values.get(key, default)
        if value is None or (value == "" and empty):
            return value
        if not isinstance(value, str) or len(value.encode()) != 1 or value in "\r\n":
            raise DataError(f"{self.where}{key} = {value!r} must be one character")
        return value

    def _as(self, key: str, value: Any, kind: type, what: str) -> Any:
        if type(value) is not kind:
            raise DataError(f"{self.where}{key} = {value!r} must be {what}")
        return value


def _dense(name: str, own: Section, top: Section, values: str) -> DenseColumn:
    section = own.section(name)
    section.check_keys(_DENSE_KEYS, "a dense column")
    return DenseColumn(
        name,
        transform=section.choice("transform", top.choice("transform", "log", TRANSFORMS), TRANSFORMS) or "log",
        missing=_missing(section, top, values),
        missing_value=section.number("missing_value", top.number("missing_value", MISSING)),
    )


def _sparse(name: str, own: Section, top: Section, values: str) -> SparseColumn:
    section = own.section(name)
    section.check_keys(_SPARSE_KEYS, "a sparse column")
    max_ids = section.values.get("max_ids", 1)
    if type(max_ids) is not int or not 1 <= max_ids < 1 << 16:
        raise DataError(f"{section.where}max_ids = {max_ids!r} must be a whole number from 1 to {(1 << 16) - 1:,}")
    if max_ids == 1 and "truncate" in section.values:
        raise DataError(f"{section.where}truncate is for lists", f"set {section.where}max_ids too")
    return SparseColumn(
        name,
        max_ids=max_ids,
        truncate=section.choice("truncate", "reject", TRUNCATIONS) or "reject",
        type=section.choice("type", None, TYPES),
        missing=_missing(section, top, values),
    )


def _missing(section: Section, top: Section, values: str) -> tuple[str, ...]:
    """Returns the texts of missing values: the given ones, or `NA`, and those that always are."""
    if values == BY_TYPE:
        return section.words("missing", top.words("missing", ()))
    return (*section.words("missing", top.words("missing", ("NA",))), *NOTHING)


def _positive(top: Section) -> tuple[tuple[str, ...] | None, tuple[str, float] | None]:
    """Parses `label_positive`: positive values, or a threshold."""
    value = top.values.get("label_positive")
    if value is None:
        return None, None
    operator = next((o for o in _OPERATORS if isinstance(value, str) and value.startswith(o)), None)
    if operator is None:
        return top.words("label_positive", ()), None
    try:
        number = float(value[len(operator) :])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{top.where}label_positive = {value!r} must be an operator and a number, as in '>= 4'")
    return None, (operator, number)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Returns a hint with the known word that `word` probably means, or None."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else None
