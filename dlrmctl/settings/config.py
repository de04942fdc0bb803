"""Every setting of a training run, one line each: flags, `run.toml`, checks and help all come from here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import refuse_url
from dlrmctl.errors import UserError
from dlrmctl.settings.embeddings import EmbeddingSettings, TableChanges, check_embeddings, default_qr_lr, table_changes
from dlrmctl.settings.setting import checked_values, did_you_mean, flag_of, setting, shown
from dlrmctl.settings.synonyms import names_meant, nearest

LARGEST_SEED = (1 << 63) - 1  # what torch and NumPy both take
MOST_SYNTHETIC_ROWS = 10**10
DATASETS = ("criteo", "synthetic")
SYNTHETIC_SIZES = ("small", "medium", "kaggle")
DENSE_INPUTS = ("auto", "quantile", "standard", "raw")
AUTO_INPUTS = "quantile"  # what "auto" is, but for data that earlier versions prepared
DENSE_OPTIMIZERS = ("shampoo", "adagrad", "adamw", "sgd")
SMALLEST_BATCH, LARGEST_BATCH = 64, 2048  # that are chosen from the number of examples
MOST_EPOCHS = 30  # with --epochs auto
AUTO_PATIENCE = 4
# Where a learning rate is not given, the dense optimizer decides it.
DENSE_LR = {"shampoo": 0.004, "adagrad": 0.004, "adamw": 0.001, "sgd": 0.1}
AVERAGINGS = ("none", "gpa", "ema", "schedule-free")


@dataclass(frozen=True)
class DataSettings:
    dataset: str = setting(
        "criteo",
        "Data to use without --data: criteo, found through $DLRMCTL_DATA or in the cache directory; or synthetic, "
        "generated rows. In run.toml also the name of the data in `path`.",
        choices=DATASETS,
        open=True,
    )
    path: str | None = setting(None, "Use the data in this directory, which `dlrmctl prepare` wrote.", flag="--data")
    synthetic_size: str = setting(
        "small",
        "Ids per table: up to 10,000; up to 200,000; or as many as Criteo's Kaggle data has.",
        choices=SYNTHETIC_SIZES,
    )
    synthetic_rows: int = setting(
        2_000_000, "Training examples of the synthetic data set.", at_least=1000, at_most=MOST_SYNTHETIC_ROWS
    )
    synthetic_seed: int = setting(0, "Seed of the synthetic teacher and its rows.", at_least=0, at_most=LARGEST_SEED)


@dataclass(frozen=True)
class ModelSettings:
    dense_inputs: str = setting(
        "auto",
        "How dense features are normalized, by the training examples: to normal scores of ranks (quantile), to mean 0 "
        f"and deviation 1 (standard), or not (raw). auto: {AUTO_INPUTS}, or raw for data of earlier versions.",
        choices=DENSE_INPUTS,
    )
    bottom_mlp: tuple[int, ...] = setting(
        (512, 256, 64, 16), "Widths of the bottom MLP; the last equals --dim.", at_least=1
    )
    top_mlp: tuple[int, ...] = setting((512, 256, 1), "Widths of the top MLP; the last is 1.", at_least=1)
    interaction: str = setting("dot", "How dense and sparse vectors meet.", choices=("dot", "cat"))


@dataclass(frozen=True)
class OptimSettings:
    sparse_lr: float = setting(0.05, "Learning rate of full, hash and head tables (row-wise AdaGrad).", at_least=0)
    qr_lr: float = setting(
        None, "Learning rate of tables whose rows are combined. Default: mult 0.1, otherwise 0.05.", at_least=0
    )
    sparse_eps: float = setting(1e-8, "Epsilon of row-wise AdaGrad, outside the root.", above=0)
    dense_optimizer: str = setting("shampoo", "Optimizer of the MLPs.", choices=DENSE_OPTIMIZERS)
    dense_lr: float = setting(
        None,
        "Learning rate of the MLPs. Default: " + ", ".join(f"{k} {v:g}" for k, v in DENSE_LR.items()) + ".",
        at_least=0,
    )
    dense_eps: float = setting(
        1e-6, "Epsilon of adagrad, adamw and what shampoo grafts; keeps noise from taking full steps.", above=0
    )
    momentum: float = setting(0.0, "Momentum of shampoo and sgd.", at_least=0, below=1)
    beta1: float = setting(0.0, "Gradient filter of shampoo; adamw uses 0.9 when this is 0.", at_least=0, below=1)
    beta2: float = setting(
        1.0, "Decay of shampoo's statistics; 1 sums them. adamw uses 0.999 when this is 1.", above=0, at_most=1
    )
    weight_decay: float = setting(
        0.0, "Weight decay of the MLPs; decoupled for shampoo and adamw, L2 for adagrad and sgd.", at_least=0
    )
    grafting: str = setting(
        "adagrad", "Whose step length shampoo takes.", choices=("adagrad", "rmsprop", "adam", "sgd", "none")
    )
    shampoo_block: int = setting(128, "Largest side of a shampoo block.", at_least=1)
    shampoo_statistics: int = setting(4, "Steps between two updates of shampoo's factor matrices.", at_least=1)
    shampoo_sides: int = setting(2, "Sides of a matrix that shampoo preconditions.", at_least=1, at_most=2)
    shampoo_frequency: int = setting(100, "Steps between two refreshes of a root inverse.", at_least=1)
    shampoo_schedule: str = setting(
        "doubling",
        "When roots are refreshed: every --shampoo-frequency steps; or doubling: at steps 1, 2, 4, ... until then, and "
        "with factor matrices updated at every step at first.",
        choices=("constant", "doubling"),
    )
    shampoo_start: int = setting(
        None, "Step of the first preconditioned update. Default: the frequency; 1 for doubling.", at_least=1
    )
    shampoo_overhead: float | None = setting(
        None,
        "Percent that shampoo may add to the steps of a run of 1,000; a probe chooses block and intervals.",
        above=0,
        unit="%",
    )
    shampoo_epsilon: float = setting(1e-4, "Added to factor matrices, times their mean eigenvalue.", above=0)
    averaging: str = setting(
        "gpa",
        "Average the MLPs over steps, to evaluate and keep: gpa and schedule-free take gradients between the weights "
        "and their average, ema at the weights.",
        choices=AVERAGINGS,
    )
    averaging_horizon: float | None = setting(
        None, "Steps that the average of gpa and ema spans. Default: a tenth of those so far, at most 1000.", at_least=1
    )
    averaging_mu_y: float | None = setting(
        None,
        "Where gradients are taken, from the weights (0) to their average (1). Default: gpa 0.7, schedule-free 0.9.",
        at_least=0,
        at_most=1,
    )


@dataclass(frozen=True)
class ScheduleSettings:
    warmup_steps: int | None = setting(
        None,
        "Steps of linear warmup. Default: a twentieth of the run, from 50 to 1,000, and at most a tenth of it.",
        at_least=0,
    )
    hold_steps: int = setting(0, "Steps at full rate before decay starts.", at_least=0)
    decay: str = setting("none", "Shape of the decay after that.", choices=("none", "polynomial", "cosine"))
    decay_steps: int = setting(0, "Steps of decay; 0 means to the end of the run.", at_least=0)
    final_lr_factor: float = setting(0.0, "Share of the learning rate left when decay ends.", at_least=0, at_most=1)


@dataclass(frozen=True)
class TrainSettings:
    batch_size: int = setting(
        None,
        "Examples per step over all ranks together. Default: auto, a five-hundredth of the training examples "
        f"as a power of two from {SMALLEST_BATCH} to {LARGEST_BATCH:,}.",
        at_least=1,
        at_most=1 << 24,
        auto=True,
    )
    epochs: int | None = setting(
        None,
        "Passes over the training split. Default: auto, further passes while validation NE falls; "
        "1 for generated data.",
        at_least=1,
        at_most=1_000_000,
        auto=True,
    )
    max_steps: int = setting(0, "Stop after this many steps; 0 means no limit.", at_least=0)
    evaluations: int = setting(4, "Evaluations on the validation split per epoch.", at_least=1, at_most=1_000_000)
    patience: int = setting(
        None,
        "Stop after this many evaluations without a lower validation NE; 0 means never. "
        f"Default: {AUTO_PATIENCE} with --epochs auto, or one that is clearly higher, after the first pass; else 0.",
        at_least=0,
    )
    checkpoint_every: int = setting(0, "Steps between checkpoints; 0 means at every evaluation.", at_least=0)
    keep_checkpoints: int = setting(2, "Latest checkpoints kept, besides the best.", at_least=1)
    log_every: int = setting(100, "Most steps between two lines of progress; a run has at least 20.", at_least=1)
    tensorboard: bool = setting(False, "Write TensorBoard events into the run directory.")
    device: str = setting("auto", "Where to compute.", choices=("auto", "cpu", "cuda"))
    precision: str = setting(
        "fp32", "fp32; medium (bf16 products inside fp32); or bf16 (autocast).", choices=("fp32", "medium", "bf16")
    )
    seed: int = setting(0, "Seed of initial values and of the order of examples.", at_least=0, at_most=LARGEST_SEED)


@dataclass(frozen=True)
class Config:
    """The settings of a run: checked, completed and frozen however they are made.

    `Config.of(batch_size=512)` takes settings by name, `Config(train=TrainSettings(batch_size=512))` takes sections,
    and `resolve` takes what files and flags say. What follows from other settings, such as a learning rate that was
    not given, follows anew when `change` or `dataclasses.replace` makes other settings of these.

    Attributes:
        tables: the section `embeddings.tables`: what single tables have otherwise.
        examples: of the training split, once the data is known.
        ranks: that train, once they are known.
        derived: settings that were not given, with the values that follow from others and from the data.

    Raises:
        UserError: for a value of another type or out of range, or settings that contradict.
    """

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    embeddings: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    tables: TableChanges = field(default_factory=dict)
    examples: int | None = field(default=None, repr=False, compare=False)
    ranks: int = field(default=1, repr=False, compare=False)
    derived: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, cls in SECTIONS.items():
            values = {key: value for key, value in vars(getattr(self, name)).items() if value is not None}
            places = {key: (value, f"{name}.{key}") for key, value in values.items()}
            self._set(name, cls(**checked_values(cls, places)))
        self._set("tables", table_changes(self.tables, "embeddings.tables"))
        if self.data.path is not None:  # a run can be resumed from any directory
            _refuse_url(self.data.path)
            self._set("data", replace(self.data, path=str(Path(self.data.path).resolve())))
        self._complete()
        _check(self)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _complete(self) -> None:
        """Gives a value to what was not given."""
        derived = {}
        for name, value in self._follows().items():
            section = section_of(name)
            present = getattr(getattr(self, section), name)
            if present is None or (name in self.derived and self.derived[name] == present):
                derived[name] = value
                self._set(section, replace(getattr(self, section), **{name: value}))
        self._set("derived", derived)

    def _follows(self) -> dict[str, Any]:
        """What a setting is that was not given."""
        endless = self.data.dataset == "synthetic" and self.data.path is None  # more rows rather than more passes
        epochs_given = self.train.epochs is not None and "epochs" not in self.derived
        return {
            "qr_lr": default_qr_lr(self.embeddings),
            "dense_lr": DENSE_LR[self.optim.dense_optimizer],
            "shampoo_start": 1 if self.optim.shampoo_schedule == "doubling" else self.optim.shampoo_frequency,
            "batch_size": batch_for(self.examples, self.ranks),
            "epochs": 1 if endless else None,
            "patience": 0 if endless or epochs_given else AUTO_PATIENCE,
        }

    def fitted(self, examples: int | None, ranks: int) -> "Config":
        """The configuration for training data of this size: what was not given follows from it.

        Args:
            examples: of the training split; None for data that is large, or not known.
            ranks: that share a batch.

        Raises:
            UserError: if a batch size that was given cannot be cut into equal parts, one per rank.
        """
        config = replace(self, examples=examples, ranks=ranks)
        check_batch(config, ranks)
        return config

    @classmethod
    def of(cls, *, tables: Mapping[str, Mapping[str, Any]] | None = None, **settings: Any) -> "Config":
        """Takes settings by name: `Config.of(dataset="synthetic", batch_size=512)`.

        Args:
            tables: what single tables have otherwise: pattern -> setting -> value.
            settings: typed values or text, as on the command line.

        Raises:
            UserError: for an unknown or mistyped setting, a value out of range, or settings that contradict.
        """
        return cls(tables={pattern: dict(values) for pattern, values in (tables or {}).items()}).change(**settings)

    def change(self, **settings: Any) -> "Config":
        """The configuration with these settings changed, taken by name as `of` does.

        Raises:
            UserError: as `of`.
        """
        sections: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            sections.setdefault(section_of(name), {})[name] = (value, name)
        changed = {
            section: replace(getattr(self, section), **checked_values(SECTIONS[section], values))
            for section, values in sections.items()
        }
        # A value that is given stays, also if it equals the one that would have followed.
        derived = {name: value for name, value in self.derived.items() if name not in settings}
        return replace(self, **changed, derived=derived)

    def to_dict(self, *, derived: bool = True) -> dict[str, dict[str, Any]]:
        """Plain data for TOML: lists for tuples, absent keys for None.

        Args:
            derived: whether settings are among it that follow from others.
        """
        sections: dict[str, dict[str, Any]] = {
            section: {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in vars(getattr(self, section)).items()
                if value is not None and (derived or name not in self.derived)
            }
            for section in SECTIONS
        }
        if self.tables:
            sections["embeddings"]["tables"] = {pattern: dict(values) for pattern, values in self.tables.items()}
        return sections


SECTIONS: dict[str, type] = {
    "data": DataSettings,
    "model": ModelSettings,
    "embeddings": EmbeddingSettings,
    "optim": OptimSettings,
    "schedule": ScheduleSettings,
    "train": TrainSettings,
}
_SECTION_OF = {item.name: section for section, cls in SECTIONS.items() for item in fields(cls)}


def section_of(name: str) -> str:
    """The section of a setting.

    Raises:
        UserError: if there is no setting of this name.
    """
    if name not in _SECTION_OF:
        raise UserError(f"{name} is not a setting", did_you_mean(names_meant(name, _SECTION_OF)))
    return _SECTION_OF[name]


def resolve(file: Mapping[str, Any], flags: Mapping[str, Any], *, file_name: str = "run.toml") -> Config:
    """Takes the defaults, then the file, then the typed flags.

    Args:
        file: sections as read from TOML.
        flags: setting name -> text, only those that were typed.
        file_name: how messages call the file.

    Raises:
        UserError: for an unknown or mistyped setting, a value out of range, or settings that contradict.
    """
    given: dict[str, dict[str, tuple[Any, str]]] = {name: {} for name in SECTIONS}
    tables: TableChanges = {}
    for section, values in file.items():
        if section not in SECTIONS:
            raise _not_a_section(section, values, file_name)
        if not isinstance(values, dict):
            raise UserError(f"{file_name}: {section} = {values!r} must be a section, [{section}]")
        for name, value in values.items():
            if (section, name) == ("embeddings", "tables"):
                tables = table_changes(value, f"{file_name}: embeddings.tables")
            else:
                _check_section(name, section, file_name)
                given[section][name] = (value, f"{file_name}: {section}.{name}")
    for section, cls in SECTIONS.items():
        for item in fields(cls):
            if item.name in flags:
                given[section][item.name] = (flags[item.name], flag_of(item))
    sections = {name: cls(**checked_values(cls, given[name])) for name, cls in SECTIONS.items()}
    return Config(**sections, tables=tables)


def _refuse_url(path: str) -> None:
    try:
        refuse_url(path)
    except DataError as problem:
        raise UserError(f"data.path = {problem.message}", problem.hint) from None


def _not_a_section(name: str, value: Any, file_name: str) -> UserError:
    """The error for a name that stands where sections do."""
    if isinstance(value, dict):
        close = nearest(name, SECTIONS)
        hint = f"did you mean [{close}]?" if close else f"the sections are {', '.join(f'[{s}]' for s in SECTIONS)}"
        return UserError(f"{file_name}: [{name}] is not a section", hint)
    meant = names_meant(name, _SECTION_OF)
    if name in _SECTION_OF:
        return UserError(f"{file_name}: {name} is outside its section", f"put it below the line [{_SECTION_OF[name]}]")
    places = ", ".join(f"[{_SECTION_OF[m.split()[0]]}]" for m in meant)
    hint = f"{did_you_mean(meant)} (below {places})" if meant else "settings are in sections such as [train]"
    return UserError(f"{file_name}: {name} is neither a section nor a setting", hint)


def _check_section(name: str, section: str, file_name: str) -> None:
    """
    Raises:
        UserError: for a setting that belongs to another section.
    """
    own = _SECTION_OF.get(name, section)
    if own != section:
        raise UserError(f"{file_name}: {section}.{name} is in the wrong section", f"move it below [{own}]")
    if not hasattr(SECTIONS[section], name) and (meant := names_meant(name, _SECTION_OF)):
        places = ", ".join(sorted({f"[{_SECTION_OF[m.split()[0]]}]" for m in meant}))
        raise UserError(f"{file_name}: {section}.{name} is not a setting", f"{did_you_mean(meant)} (below {places})")


def _check(config: Config) -> None:
    """Refuses what contradicts.

    Raises:
        UserError: naming both settings.
    """
    emb, model, optim, schedule = config.embeddings, config.model, config.optim, config.schedule
    _check_data(config.data)
    check_embeddings(emb, config.tables)
    if model.bottom_mlp[-1] != emb.dim:
        last, is_default = model.bottom_mlp[-1], model.bottom_mlp == ModelSettings().bottom_mlp
        fitting = (*model.bottom_mlp[:-1], emb.dim) if is_default else (*model.bottom_mlp, emb.dim)
        raise UserError(
            f"model.bottom_mlp = {shown(model.bottom_mlp)} ends in {last}, but embeddings.dim = {emb.dim}",
            f"--bottom-mlp {shown(fitting)} --dim {emb.dim}" + ("" if is_default else f", or --dim {last}"),
        )
    if model.top_mlp[-1] != 1:
        raise UserError(
            f"model.top_mlp = {shown(model.top_mlp)} must end in 1", f"--top-mlp {shown((*model.top_mlp, 1))}"
        )
    if optim.shampoo_schedule == "constant" and optim.shampoo_start < optim.shampoo_frequency:
        raise UserError(
            f"optim.shampoo_start = {optim.shampoo_start} is before the first refresh, "
            f"optim.shampoo_frequency = {optim.shampoo_frequency}",
            f"raise --shampoo-start to {optim.shampoo_frequency}, lower --shampoo-frequency, or "
            "--shampoo-schedule doubling",
        )
    if optim.shampoo_overhead is not None and optim.dense_optimizer != "shampoo":
        raise UserError(
            f"optim.shampoo_overhead = {optim.shampoo_overhead:g} needs optim.dense_optimizer = shampoo, "
            f"not {optim.dense_optimizer}"
        )
    for name, other in (("averaging_horizon", "ema"), ("averaging_mu_y", "schedule-free")):
        value = getattr(optim, name)
        if value is not None and optim.averaging not in ("gpa", other):
            raise UserError(f"optim.{name} = {value:g} needs optim.averaging = gpa or {other}, not {optim.averaging}")
    if schedule.decay != "none" and not schedule.decay_steps and config.train.epochs is None:
        raise UserError(
            f"schedule.decay = {schedule.decay} ends with the run, and train.epochs = auto has no planned end",
            "--epochs 1, or the length of the decay with --decay-steps N",
        )
    if schedule.decay == "none" and schedule.decay_steps:
        raise UserError(
            f"schedule.decay_steps = {schedule.decay_steps} needs a decay", "--decay cosine or --decay polynomial"
        )


def _check_data(data: DataSettings) -> None:
    if data.dataset == "synthetic" and data.path is not None:
        raise UserError(
            f"data.dataset = synthetic and data.path = {data.path} contradict: generated rows need no files",
            "omit --dataset or --data",
        )
    if data.path is None and data.dataset not in DATASETS:
        close = nearest(data.dataset, DATASETS)
        meant = f"did you mean {close!r}? " if close else ""
        raise UserError(
            f"data.dataset = {data.dataset!r} must be one of {', '.join(DATASETS)}, or stand beside a path",
            f"{meant}--data DIR uses data of your own",
        )


def batch_for(examples: int | None, ranks: int) -> int:
    """The batch for so many training examples: a five-hundredth of them, as a power of two; the largest for None.

    The same on 1, 2, 4 and 8 ranks; on other numbers the next multiple of them.
    """
    wanted = LARGEST_BATCH if examples is None else 2 ** round(math.log2(max(1, examples / 500)))
    size = min(max(wanted, SMALLEST_BATCH), LARGEST_BATCH)
    return size + -size % ranks


def check_batch(settings: Config, world_size: int) -> None:
    """Checks that a batch that was given can be cut into equal parts, one per rank.

    Raises:
        UserError: if it cannot.
    """
    if settings.derived.get("batch_size") == settings.train.batch_size and settings.examples is None:
        return  # it is chosen when the data is known
    size = settings.train.batch_size
    if size % world_size:
        raise UserError(
            f"train.batch_size = {size} cannot be cut into {world_size} equal parts, one per rank",
            f"--batch-size {size + -size % world_size}",
        )
