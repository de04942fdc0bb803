"""The schema of a user's tables, read from a TOML file: label, dense and sparse columns.

Errors name the wrong key.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.transforms import MISSING, TRANSFORMS
from dlrmctl.data.moments import EPOCHS, PARTS, UNITS, moment_of
from dlrmctl.data.schema import LARGEST_DENSE

TRUNCATIONS = ("reject", "first", "last")
TYPES = ("string", "integer")
POOLINGS = ("sum", "mean")
_OPERATORS = (">=", "<=", ">", "<")
_DENSE_KEYS = ("transform", "missing", "missing_value", "column", "clip", "since", "unit")
_LIST_KEYS = ("truncate", "pooling", "weights")
_SPARSE_KEYS = ("max_ids", *_LIST_KEYS, "type", "missing", "column", "part", "buckets", "cross", "table")
_TIME_KEYS = ("parts", "epoch", "missing")
_MADE_BY = ("part", "buckets", "cross")  # how a sparse column is made; at most one of them
_MOST_BUCKETS = 128  # edges are interpolated between 129 values
_TOP_KEYS = (
    *("label", "label_positive", "dense", "sparse", "columns", "transform", "missing", "missing_value"),
    *("separator", "quote", "list_separator", "weight", "group", "id"),
)
_NEWER = ("column", "clip", "since", "unit", "part", "buckets", "cross", "table", "pooling", "weights")
_NEWER_TOP = ("times", "weight", "group", "id")
CANONICAL = "canonical-1"  # the rule of `data.canonical`
BY_TYPE = "by-type"  # of stores of earlier versions: values are identified by the type of their column
NOTHING = ("NaN", "nan", "NAN", "null", "Null", "NULL")  # always missing, as is an empty text
PREDICTION_COLUMNS = ("source", "line", "probability", "label", "problem")  # beside which predictions keep others


@dataclass(frozen=True)
class DenseColumn:
    """Attributes:
    transform: a key of `TRANSFORMS`.
    missing: texts of missing values.
    missing_value: stand-in for a missing value, after the transform, for a model that takes values as they are.
    column: the column of the files that is read; None for that of the same name.
    clip: the lowest and the highest number, which replace those beyond; before the transform.
    since: a time, or a column of times: the number is the time from it to `column`.
    unit: of that number, a key of `UNITS`.
    """

    name: str
    transform: str = "log"
    missing: tuple[str, ...] = ()
    missing_value: float = MISSING
    column: str | None = None
    clip: tuple[float, float] | None = None
    since: str | None = None
    unit: str = "days"

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns that are read."""
        own = self.column or self.name
        return (own, self.since) if self.since is not None and self.reference is None else (own,)

    @property
    def reference(self) -> int | None:
        """`since` in microseconds; None if it is a column."""
        return None if self.since is None else moment_of(self.since)

    @property
    def formula(self) -> str:
        """What was done to the values of the column, with x for such a value."""
        formula, x = TRANSFORMS[self.transform].formula, "x"
        if self.since is not None:
            x = f"({self.unit} from {self.since} to x)"
        if self.clip is not None:
            x = f"min(max({x}, {self.clip[0]:g}), {self.clip[1]:g})"
        return re.sub(r"\bx\b", lambda _: x, formula)


@dataclass(frozen=True)
class SparseColumn:
    """Attributes:
    max_ids: longest list; 1 for a column of single values.
    truncate: one of `TRUNCATIONS`, for longer lists.
    type: one of `TYPES`; None takes the table's.
    missing: texts of missing values.
    column: the column of the files that is read; None for that of the same name.
    part: the part of a time that is the value, one of `PARTS`.
    buckets: the most buckets of like counts for the numbers of the column.
    cross: the two sparse columns whose pairs of values are the values.
    table: names the ids and the table that the column shares with others: those of the same `table`, and the column of
        that name.
    pooling: one of `POOLINGS`: how the vectors of a list become one.
    weights: the column of lists of numbers that weight the values of a list.
    """

    name: str
    max_ids: int = 1
    truncate: str = "reject"
    type: str | None = None
    missing: tuple[str, ...] = ()
    column: str | None = None
    part: str | None = None
    buckets: int | None = None
    cross: tuple[str, ...] | None = None
    table: str | None = None
    pooling: str = "sum"
    weights: str | None = None

    @property
    def owner(self) -> str:
        """The name of its ids and its table."""
        return self.table or self.name

    @property
    def source(self) -> str:
        """The column that is read, unless this one is a cross."""
        return self.column or self.name


@dataclass(frozen=True)
class TimeColumn:
    """A column of times.

    Attributes:
        epoch: the unit of numbers since 1970, a key of `EPOCHS`; None if times are no numbers.
        missing: texts of missing values.
    """

    name: str
    epoch: str | None = None
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
        times: the columns of times whose sections say something of them.
        weight: the column of the weights of examples; None if all count 1.
        group: the column whose values group examples for gAUC, or None.
        id: columns that identify rows, which predictions keep.
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
    times: tuple[TimeColumn, ...] = ()
    weight: str | None = None
    group: str | None = None
    id: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns that are read, each once: for the label, dense and sparse columns."""
        dense = (source for column in self.dense for source in column.sources)
        sparse = (column.source for column in self.sparse if column.cross is None)
        weights = (column.weights for column in self.sparse if column.weights is not None)
        return tuple(dict.fromkeys((self.label, *dense, *sparse, *weights)))

    @property
    def lists(self) -> frozenset[str]:
        """The columns of lists."""
        lists = [column for column in self.sparse if column.max_ids > 1]
        return frozenset(name for column in lists for name in (column.source, column.weights) if name is not None)

    @property
    def moments(self) -> tuple[str, ...]:
        """The columns that are read as times, each once."""
        dense = (source for column in self.dense if column.since is not None for source in column.sources)
        return tuple(dict.fromkeys((*dense, *(column.source for column in self.sparse if column.part is not None))))

    @property
    def shared(self) -> frozenset[str]:
        """The names of the tables that several columns share."""
        owners = [column.owner for column in self.sparse]
        return frozenset(name for name in owners if owners.count(name) > 1)

    @property
    def of_examples(self) -> tuple[str, ...]:
        """The columns of weight and group, which are read with labels only."""
        return tuple(name for name in (self.weight, self.group) if name is not None)

    def grouping(self) -> SparseColumn:
        """How the values of `group` are read: as those of the sparse column, if it is one."""
        assert self.group is not None
        same = (c for c in self.sparse if c.name == self.group and c.column is None and not _made(c))
        return next(same, SparseColumn(self.group, missing=("NA", *NOTHING)))

    def time(self, name: str) -> TimeColumn:
        """How the times in a column are read."""
        return next(
            (column for column in self.times if column.name == name), TimeColumn(name, missing=("NA", *NOTHING))
        )

    @property
    def rule(self) -> str | None:
        """`values`, or None for that of the first versions, which had no name."""
        return None if self.values == BY_TYPE else self.values

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON, without the name of the file."""
        values = {key: value for key, value in asdict(self).items() if key != "name"}
        for key, kind in (("dense", DenseColumn), ("sparse", SparseColumn)):
            values[key] = tuple(_said(column, kind) for column in values[key])
        return {key: value for key, value in values.items() if value or key not in _NEWER_TOP}

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
                "times": tuple(TimeColumn(**_with_tuples(column)) for column in values.get("times", ())),
            }
            return cls(name=name, **_with_tuples(kept))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not the schema of a table: {error!r}") from error


def _made(column: SparseColumn) -> bool:
    """Whether the values of a column are made from those of the files."""
    return column.part is not None or column.buckets is not None or column.cross is not None


def _said(column: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Omits the newer keys that have their defaults, so that a plain schema is written as by earlier versions."""
    defaults = {item.name: item.default for item in fields(kind) if item.name in _NEWER}
    return {key: value for key, value in column.items() if key not in defaults or value != defaults[key]}


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
    own = Section(top.table("columns"), f"{name}: columns.")
    times, parts = _times(own, top, (label, *dense, *sparse), values)
    names = [label, *dense, *sparse, *(part.name for part in parts)]
    if twice := next((column for column in names if names.count(column) > 1), None):
        raise DataError(f"{name}: the column {twice!r} is repeated", "a column is either label, dense or sparse")
    if not sparse and not parts:
        raise DataError(
            f"{name}: {'sparse has no columns' if 'sparse' in content else 'sparse is missing'}",
            'name at least one column of ids: sparse = ["user"]; numbers alone can be one with buckets = 32 under '
            "[columns.NAME]",
        )
    for column in own.values:
        if column not in (*dense, *sparse, *(time.name for time in times)):
            raise DataError(
                f"{name}: columns.{column} is listed neither in dense nor in sparse",
                nearest(column, names[1:])
                or f"list {column!r} there; only a column of times with {' or '.join(_TIME_KEYS[:2])} is not listed",
            )
    positive, threshold = _positive(top)
    columns = (*(_sparse(column, own, top, values) for column in sparse), *parts)
    _check_crosses(columns, own)
    _check_lists(columns, own)
    _check_shared(columns, own)
    _check_weights(label, dense, columns, own)
    weight, group, ids = (top.text("weight", "") or None), (top.text("group", "") or None), top.words("id", ())
    _check_of_examples(top, label, (*dense, *columns), weight=weight, group=group, ids=ids)
    return TableSchema(
        name=name,
        label=label,
        dense=tuple(_dense(column, own, top, values) for column in dense),
        sparse=columns,
        positive=positive,
        threshold=threshold,
        separator=top.character("separator", None),
        quote=top.character("quote", '"', empty=True) or "",
        list_separator=top.character("list_separator", "|") or "|",
        values=values,
        times=times,
        weight=weight,
        group=group,
        id=ids,
    )


def _check_weights(label: str, dense: Sequence[str], columns: Sequence[SparseColumn], own: "Section") -> None:
    """Checks that the weights of lists are columns of their own."""
    others = {label, *dense, *(column.source for column in columns if column.cross is None)}
    for column in columns:
        if column.weights in others:
            raise DataError(
                f"{own.where}{column.name}.weights = {column.weights!r} is a feature or the label",
                "weights are lists of numbers in a column of their own",
            )


def _check_shared(columns: Sequence[SparseColumn], own: "Section") -> None:
    """Checks that columns that share a table have the same kind of values."""
    first: dict[str, SparseColumn] = {}
    for column in columns:
        other = first.setdefault(column.owner, column)
        if other is column:
            continue
        shared, plain = (column, other) if column.table else (other, column)
        where = f"{own.where}{shared.name}.table = {shared.table!r}"
        if _made(plain):
            raise DataError(f"{where}: {plain.name!r} is made of others, and cannot share its table")
        if plain.type != shared.type:
            raise DataError(
                f"{where}: {plain.name!r} has other values, of type {plain.type or 'any'}, not {shared.type or 'any'}",
                "give both the same type",
            )


def _check_of_examples(
    top: "Section",
    label: str,
    features: Sequence[str | SparseColumn],
    *,
    weight: str | None,
    group: str | None,
    ids: Sequence[str],
) -> None:
    """Checks the columns of weight, group and id."""
    if weight is not None and (weight == label or weight in features):
        what = "the label" if weight == label else "dense"
        hint = f"a feature of the same values has another name: column = {json.dumps(weight)}"
        raise DataError(f"{top.where}weight = {weight!r} is {what} too", hint if weight != label else None)
    lists = [c.source for c in features if isinstance(c, SparseColumn) and c.cross is None and c.max_ids > 1]
    sparse = [c.name for c in features if isinstance(c, SparseColumn)]
    for key, name in (("weight", weight), ("group", group)):
        if name in lists or (key == "weight" and name in sparse):
            raise DataError(
                f"{top.where}{key} = {name!r} is a column of {'lists' if name in lists else 'ids'}",
                "weights are numbers" if key == "weight" else "groups are single values",
            )
    if group is not None and group in (label, weight):
        raise DataError(f"{top.where}group = {group!r} is the {'label' if group == label else 'weight'} too")
    for name in ids:
        if name in PREDICTION_COLUMNS:
            raise DataError(f"{top.where}id: predictions have a column {name!r} of their own", "rename the column")
    if len(set(ids)) < len(ids):
        raise DataError(f"{top.where}id = {list(ids)!r} repeats a column")


def _times(
    own: "Section", top: "Section", others: Sequence[str], values: str
) -> tuple[tuple[TimeColumn, ...], list[SparseColumn]]:
    """Returns the columns of times that have sections, and the sparse columns that their parts are."""
    times, parts = [], []
    for name in own.values:
        section = own.section(name)
        if name in others or not any(key in section.values for key in _TIME_KEYS[:2]):
            continue
        section.check_keys(_TIME_KEYS, "a column of times")
        missing = _missing(section, top, values)
        times.append(TimeColumn(name, section.choice("epoch", None, EPOCHS), missing))
        for part in section.texts("parts", ()):
            if part not in PARTS:
                known = f"the parts are {', '.join(PARTS)}"
                close = nearest(part, PARTS)
                raise DataError(
                    f"{section.where}parts: {part!r} is not a part of a time", f"{close or ''} {known}".strip()
                )
            parts.append(SparseColumn(f"{name}_{part}", missing=missing, column=name, part=part))
    return tuple(times), parts


def _check_crosses(columns: Sequence[SparseColumn], own: "Section") -> None:
    """Checks that crosses are of two other sparse columns with single values."""
    by_name = {column.name: column for column in columns}
    for column in columns:
        for name in column.cross or ():
            other = by_name.get(name)
            where = f"{own.where}{column.name}.cross"
            if other is None:
                raise DataError(f"{where}: {name!r} is not a sparse column", nearest(name, by_name))
            if other.max_ids > 1 or other.buckets or other.cross:
                what = "lists" if other.max_ids > 1 else "buckets" if other.buckets else "a cross"
                raise DataError(f"{where}: {name!r} has {what}, a cross is of columns with single values")


def _check_lists(columns: Sequence[SparseColumn], own: "Section") -> None:
    """Checks that a column is read as lists or as single values, not both."""
    found: dict[str, SparseColumn] = {}
    for column in columns:
        other = found.setdefault(column.source, column)
        if column.cross is None and other.cross is None and (column.max_ids > 1) != (other.max_ids > 1):
            raise DataError(
                f"{own.where}{column.name}: {column.source!r} has lists for one of {other.name!r} and {column.name!r}",
                "set max_ids for both",
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
            raise DataError(f"{self.where}{key} = {value!r} must be a number, at most {LARGEST_DENSE:g}")
        return float(value)

    def interval(self, key: str) -> tuple[float, float] | None:
        """Returns a list of two numbers, the first below the second."""
        if key not in self.values:
            return None
        found = self._as(key, self.values[key], list, "a list of two numbers, the lower one first")
        ends = [
            end for end in found if not isinstance(end, bool) and isinstance(end, int | float) and math.isfinite(end)
        ]
        if len(found) != 2 or len(ends) != 2 or not ends[0] < ends[1]:
            raise DataError(f"{self.where}{key} = {found!r} must be two numbers, the lower one first")
        return float(ends[0]), float(ends[1])

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
    _refuse_parts(section, name, "dense")
    section.check_keys(_DENSE_KEYS, "a dense column")
    since = section.text("since", "") or None
    if since is None and "unit" in section.values:
        raise DataError(f"{section.where}unit is for the time since another", f"set {section.where}since too")
    if since is not None and "column" not in section.values:
        raise DataError(f"{section.where}since needs a column of times", f'set {section.where}column = "..."')
    # A difference of times may be below 0, and is no count.
    usual = top.choice("transform", "log", TRANSFORMS) if since is None else "none"
    return DenseColumn(
        name,
        column=section.text("column", "") or None,
        clip=section.interval("clip"),
        since=since,
        unit=section.choice("unit", "days", UNITS) or "days",
        transform=section.choice("transform", usual, TRANSFORMS) or "log",
        missing=_missing(section, top, values),
        missing_value=section.number("missing_value", top.number("missing_value", MISSING)),
    )


def _refuse_parts(section: Section, name: str, listed: str) -> None:
    if "parts" in section.values:
        raise DataError(
            f"{section.where}parts makes columns of its own, but {name!r} is listed in {listed}",
            f"remove {name!r} from {listed}",
        )


def _sparse(name: str, own: Section, top: Section, values: str) -> SparseColumn:
    section = own.section(name)
    _refuse_parts(section, name, "sparse")
    section.check_keys(_SPARSE_KEYS, "a sparse column")
    max_ids = section.values.get("max_ids", 1)
    if type(max_ids) is not int or not 1 <= max_ids < 1 << 16:
        raise DataError(f"{section.where}max_ids = {max_ids!r} must be a whole number from 1 to {(1 << 16) - 1:,}")
    for key in _LIST_KEYS if max_ids == 1 else ():
        if key in section.values:
            raise DataError(f"{section.where}{key} is for lists", f"set {section.where}max_ids too")
    made_by = [key for key in _MADE_BY if key in section.values]
    others = [*made_by[1:], *(key for key in ("max_ids", "truncate", "type", "table") if key in section.values)]
    if made_by and others:
        raise DataError(f"{section.where}{made_by[0]} and {others[0]} contradict", "omit one of the two")
    cross = section.texts("cross", ())
    if made_by == ["cross"] and (len(cross) != 2 or cross[0] == cross[1] or "column" in section.values):
        hint = f'{section.where}cross = ["user", "item"], without column'
        raise DataError(f"{section.where}cross = {list(cross)!r} must name two sparse columns", hint)
    buckets = section.values.get("buckets")
    if buckets is not None and (type(buckets) is not int or not 2 <= buckets <= _MOST_BUCKETS):
        raise DataError(f"{section.where}buckets = {buckets!r} must be a whole number from 2 to {_MOST_BUCKETS:,}")
    return SparseColumn(
        name,
        column=section.text("column", "") or None,
        part=section.choice("part", None, PARTS),
        buckets=buckets,
        cross=cross or None,
        max_ids=max_ids,
        truncate=section.choice("truncate", "reject", TRUNCATIONS) or "reject",
        type=section.choice("type", None, TYPES),
        table=section.text("table", "") or None,
        pooling=section.choice("pooling", "sum", POOLINGS) or "sum",
        weights=section.text("weights", "") or None,
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
