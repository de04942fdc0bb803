"""The settings that a search tries: a TOML file with the sections of run.toml.

    [optim]
    dense_lr = { low = 0.0005, high = 0.03, log = true }

    [embeddings]
    embedding = ["full", "qr"]
    collisions = { low = 2, high = 16, log = true, when = { embedding = "qr" } }

A list has the values to try, a table a range. "default" in a list leaves the setting at its default; "dim" as the last
width of the bottom MLP is the embedding dimension of the trial.
"""

import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_type_hints

from dlrmctl.errors import UserError
from dlrmctl.settings.config import SECTIONS, Config, check_section, not_a_section, section_of
from dlrmctl.settings.setting import checked_values, coerce, did_you_mean, plain_type, shown
from dlrmctl.settings.synonyms import names_meant, nearest

DEFAULT, DIM = "default", "dim"
# What a search may not change: the data, what runs on which device, and when a trial is evaluated.
_FIXED = {
    *("seed", "device", "precision", "sharding", "table_precision", "placement", "uvm_cache"),
    *("evaluations", "checkpoint_every", "keep_checkpoints"),
    *("log_every", "tracker", "max_steps", "shampoo_overhead", "init_from", "init_embeddings", "refit_dense"),
}
_KEYS = ("choices", "low", "high", "log", "when")

DEFAULT_SPACE = """\
[model]
bottom_mlp = ["512-256-64-dim", "256-64-dim", "64-dim"]
top_mlp = ["512-256-1", "256-128-1", "128-64-1", "64-1"]
interaction = ["dot", "dcn"]
wide = [false, true]
dropout = [0.0, 0.1, 0.3]

[embeddings]
dim = [8, 16, 32, 64]
embedding = ["full", "qr"]
collisions = { low = 2, high = 16, log = true, when = { embedding = "qr" } }

[optim]
dense_lr = { low = 0.0005, high = 0.03, log = true }
sparse_lr = { low = 0.005, high = 0.3, log = true }
qr_lr = { low = 0.01, high = 0.5, log = true, when = { embedding = "qr" } }
averaging_horizon = { choices = ["default", 30, 100, 300, 1000], when = { averaging = ["gpa", "ema"] } }

[train]
batch_size = [64, 128, 256, 512, 1024, 2048]
"""

Value = str | int | float | bool


@dataclass(frozen=True)
class Parameter:
    """A setting and the values to try: choices, or a range.

    Attributes:
        choices: plain values; widths are strings such as "256-64-dim".
        whole: whether the values of a range are whole numbers.
        when: setting -> values with which this one matters; with others, it is not tried.
    """

    section: str
    name: str
    choices: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()

    def value_in(self, config: Config) -> Value | None:
        """The value of the setting in a configuration, as a value to try; None if it is not among them."""
        value = getattr(getattr(config, self.section), self.name)
        if self.choices:
            forms = [shown(value) if isinstance(value, tuple) else value, DEFAULT]
            if isinstance(value, tuple):
                forms.append(shown((*value[:-1], DIM)))
            return next((form for form in forms if form in self.choices), None)
        assert self.low is not None
        assert self.high is not None
        return value if value is not None and self.low <= value <= self.high else None


@dataclass(frozen=True)
class SearchSpace:
    """The parameters of a search; those with conditions come last."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, sections: Mapping[str, Any], file_name: str) -> "SearchSpace":
        """Checks the sections of a file.

        Args:
            file_name: its name in messages.

        Raises:
            UserError: for an unknown setting, one that cannot be searched, or a value that the setting cannot have.
        """
        found = []
        for section, settings in sections.items():
            if section not in SECTIONS:
                raise not_a_section(section, settings, file_name)
            if not isinstance(settings, dict):
                raise UserError(f"{file_name}: {section} = {settings!r} must be a section, [{section}]")
            for name, given in settings.items():
                check_section(name, section, file_name)
                found.append(_parameter(section, name, given, f"{file_name}: {section}.{name}"))
        if not found:
            raise UserError(f"{file_name}: no setting to try", "dlrmctl tune --show-space prints an example")
        names = {parameter.name: parameter for parameter in found}
        for parameter in found:
            for other, _ in parameter.when:
                if other in names and names[other].when:
                    raise UserError(
                        f"{file_name}: {parameter.section}.{parameter.name}: its condition {other} has one itself"
                    )
        if DIM in names and "bottom_mlp" in names:
            for widths in names["bottom_mlp"].choices:
                if widths != DEFAULT and not str(widths).endswith(DIM):
                    raise UserError(
                        f"{file_name}: model.bottom_mlp: {widths} must end in dim, since embeddings.dim is searched",
                        f"{str(widths).rpartition('-')[0] or '512-256-64'}-dim",
                    )
        return cls(tuple(sorted(found, key=lambda parameter: bool(parameter.when))))

    def without(self, names: set[str]) -> "SearchSpace":
        """The space without some settings."""
        return SearchSpace(tuple(parameter for parameter in self.parameters if parameter.name not in names))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, equal for equal spaces."""
        return {parameter.name: asdict(parameter) for parameter in sorted(self.parameters, key=lambda p: p.name)}

    def defaults(self, config: Config) -> dict[str, Value]:
        """The values of the parameters that leave a configuration as it is; without those that cannot."""
        values: dict[str, Value] = {}
        for parameter in self.parameters:
            value = parameter.value_in(config)
            if value is not None and _matters(parameter, config, values):
                values[parameter.name] = value
        return values

    def choose(self, config: Config, pick: Callable[[Parameter], Value]) -> dict[str, Value]:
        """Picks a value for every parameter that matters with those before it."""
        values: dict[str, Value] = {}
        for parameter in self.parameters:
            if _matters(parameter, config, values):
                values[parameter.name] = pick(parameter)
        return values

    def applied(self, config: Config, values: Mapping[str, Value]) -> Config:
        """The configuration with the values of a trial.

        Raises:
            UserError: if they contradict each other.
        """
        dim = values.get(DIM, config.embeddings.dim)
        changes: dict[str, Any] = {}
        for name, value in values.items():
            if value != DEFAULT:
                changes[name] = str(value).replace(DIM, str(dim)) if name == "bottom_mlp" else value
        if DIM in changes and "bottom_mlp" not in changes:  # its last width follows
            changes["bottom_mlp"] = (*config.model.bottom_mlp[:-1], changes[DIM])
        return config.change(**changes)


def default_space(config: Config, most_rows: int, fixed: Collection[str]) -> SearchSpace:
    """The default space, without settings that are fixed or without effect.

    Args:
        most_rows: of the largest table; if no table is compressed, the kind of compression does not matter.
        fixed: names of settings.
    """
    space = SearchSpace.of(tomllib.loads(DEFAULT_SPACE), "default space")
    compressed = most_rows >= config.embeddings.qr_threshold or config.tables
    return space.without({*fixed, *(() if compressed else ("embedding", "collisions", "qr_lr"))})


def _matters(parameter: Parameter, config: Config, values: Mapping[str, Value]) -> bool:
    """Whether the conditions of a parameter hold, with the values chosen so far."""
    for name, allowed in parameter.when:
        value = values.get(name, DEFAULT)
        if (getattr(getattr(config, section_of(name)), name) if value == DEFAULT else value) not in allowed:
            return False
    return True


def _parameter(section: str, name: str, given: Any, where: str) -> Parameter:
    hints = get_type_hints(SECTIONS[section])
    if name not in hints:
        raise UserError(f"{where} is not a setting", did_you_mean(names_meant(name, hints)))
    if section == "data" or name in _FIXED:
        raise UserError(f"{where} cannot be searched", "give it as an option, for all trials")
    described = {"choices": given} if isinstance(given, list) else given
    if not isinstance(described, dict):
        raise UserError(f"{where} = {given!r} must be a list of values, or a range", "{ low = ..., high = ... }")
    for key in described:
        if key not in _KEYS:
            close = nearest(key, _KEYS)
            hint = f"did you mean {close!r}?" if close else f"choose from {', '.join(_KEYS)}"
            raise UserError(f"{where}.{key} is not part of a range", hint)
    when = _conditions(described.get("when", {}), f"{where}.when")
    if "choices" in described:
        if clash := next((key for key in ("low", "high", "log") if key in described), None):
            raise UserError(f"{where} has both choices and {clash}", "give a list, or a range")
        return Parameter(section, name, choices=_choices(section, name, described["choices"], where), when=when)
    return _range(section, name, described, where, when)


def _choices(section: str, name: str, given: Any, where: str) -> tuple[Value, ...]:
    if not isinstance(given, list) or len(given) < 2:
        raise UserError(f"{where} = {given!r} must be a list of at least two values")
    values: list[Value] = []
    for each in given:
        if each == DEFAULT:
            value: Any = DEFAULT
        else:
            widths = name == "bottom_mlp" and isinstance(each, str)
            some = each.replace(DIM, "4") if widths else each  # any dimension, to check the rest
            value = checked_values(SECTIONS[section], {name: (some, where)})[name]
            value = each if widths else shown(value) if isinstance(value, tuple) else value
        if value in values:
            raise UserError(f"{where} has {value} twice")
        values.append(value)
    return tuple(values)


def _range(
    section: str, name: str, given: Mapping[str, Any], where: str, when: tuple[tuple[str, tuple[Value, ...]], ...]
) -> Parameter:
    kind = plain_type(get_type_hints(SECTIONS[section])[name])
    if kind not in (int, float):
        raise UserError(f"{where}: only numbers have ranges", "give a list of values")
    for key in ("low", "high"):
        if key not in given:
            raise UserError(f"{where}.{key} is missing", "{ low = ..., high = ... }")
    ends = [checked_values(SECTIONS[section], {name: (given[key], f"{where}.{key}")})[name] for key in ("low", "high")]
    log = coerce(given.get("log", False), bool, f"{where}.log")
    low, high = ends
    if low is None or high is None or not low < high:
        raise UserError(f"{where}: low = {low} must be below high = {high}")
    if log and low <= 0:
        raise UserError(f"{where}: low = {low} must be above 0 for log = true")
    return Parameter(section, name, low=low, high=high, log=log, whole=kind is int, when=when)


def _conditions(given: Any, where: str) -> tuple[tuple[str, tuple[Value, ...]], ...]:
    if not isinstance(given, dict):
        raise UserError(f"{where} = {given!r} must be settings with values", '{ embedding = "qr" }')
    conditions = []
    for name, values in given.items():
        section = section_of(name)
        listed = values if isinstance(values, list) else [values]
        place = f"{where}.{name}"
        allowed = tuple(checked_values(SECTIONS[section], {name: (value, place)})[name] for value in listed)
        conditions.append((name, allowed))
    return tuple(conditions)
