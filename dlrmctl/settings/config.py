"""All settings of a training run. Flags, `run.toml`, checks and help are derived from these dataclasses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import refuse_url
from dlrmctl.data.remote.urls import is_remote, refuse_password
from dlrmctl.errors import UserError
from dlrmctl.settings.amounts import size_of
from dlrmctl.settings.baseline import BaselineSettings
from dlrmctl.settings.batches import GEOMETRIES, check_batches, largest_batch
from dlrmctl.settings.embeddings import (
    EmbeddingSettings,
    Growth,
    TableChanges,
    check_embeddings,
    default_qr_lr,
    growth,
    table_changes,
)
from dlrmctl.settings.exchange import check_exchange
from dlrmctl.settings.parse import names_of, one_of
from dlrmctl.settings.setting import checked_values, did_you_mean, flag_of, setting, shown
from dlrmctl.settings.synonyms import names_meant, nearest

LARGEST_SEED = (1 << 63) - 1  # accepted by both torch and NumPy
MOST_SYNTHETIC_ROWS = 10**10
DATASETS = ("criteo", "synthetic")
SYNTHETIC_SIZES = ("small", "medium", "kaggle")
DENSE_INPUTS = ("auto", "quantile", "standard", "raw")
AUTO_INPUTS = "quantile"  # what "auto" is, but for data that earlier versions prepared
CROSS_LAYERS, CROSS_RANK = 3, 64
DENSE_OPTIMIZERS = ("shampoo", "adagrad", "adamw", "sgd", "signum", "muon")
SMALLEST_BATCH, LARGEST_BATCH = 64, 2048  # that are chosen from the number of examples
MOST_EPOCHS = 30  # with --epochs auto
WIDE_LR = {"fitted": 0.003, "zero": 0.03}
FITTED_EXAMPLES = 500_000  # up to which first-order weights start from a fit, which takes seconds there
PATIENT_EPOCHS = 2  # without a gain, with --epochs auto
TRACKERS = ("tensorboard", "mlflow", "wandb")
SCORING_BATCH = 2048  # a larger one is not faster on CPUs
# Default learning rate of each dense optimizer.
DENSE_LR = {"shampoo": 0.004, "adagrad": 0.004, "adamw": 0.001, "sgd": 0.1, "signum": 0.00003, "muon": 0.0003}
_SMALLEST_CACHE = 1 << 26
DCT_REFRESH = 100  # steps
AVERAGINGS = ("none", "gpa", "ema", "schedule-free")


@dataclass(frozen=True)
class DataSettings:
    dataset: str = setting(
        "criteo",
        "Data set to use if --data is not given: criteo, which is looked for in $DLRMCTL_DATA and in the cache "
        "directory; or synthetic, which is generated. In run.toml, also the name of the data in `path`.",
        choices=DATASETS,
        open=True,
    )
    path: str | None = setting(
        None, "Use the prepared data in this directory or at this URL (see `dlrmctl prepare`).", flag="--data"
    )
    cache_dir: str | None = setting(
        None, "Keep parts of data at a URL in this directory. Default: one in the cache directory of the user."
    )
    cache_size: str = setting(
        "10GiB", "Keep at most this much of data at URLs, for all processes of this machine together.", metavar="SIZE"
    )
    synthetic_size: str = setting(
        "small",
        "Ids per synthetic table: up to 10,000 (small), up to 200,000 (medium), or as in Criteo's Kaggle data.",
        choices=SYNTHETIC_SIZES,
    )
    synthetic_rows: int = setting(
        2_000_000, "Number of training examples in the synthetic data.", at_least=1000, at_most=MOST_SYNTHETIC_ROWS
    )
    synthetic_seed: int = setting(0, "Seed of the synthetic data.", at_least=0, at_most=LARGEST_SEED)


@dataclass(frozen=True)
class ModelSettings:
    dense_inputs: str = setting(
        "auto",
        "Normalize dense features by the training examples: to normal scores of ranks (quantile), to mean 0 and "
        f"standard deviation 1 (standard), or not (raw). auto: {AUTO_INPUTS}, or raw for data of earlier versions.",
        choices=DENSE_INPUTS,
    )
    bottom_mlp: tuple[int, ...] = setting(
        (512, 256, 64, 16), "Layer widths of the bottom MLP; the last must equal --dim.", at_least=1
    )
    top_mlp: tuple[int, ...] = setting((512, 256, 1), "Layer widths of the top MLP; the last must be 1.", at_least=1)
    interaction: str = setting(
        "dcn",
        "Combine dense and sparse vectors by cross layers of low rank over their concatenation (dcn), by dot products "
        "of all pairs (dot), or by concatenation alone (cat).",
        choices=("dcn", "dot", "cat"),
    )
    cross_layers: int | None = setting(
        None, f"Number of cross layers of --interaction dcn. Default: {CROSS_LAYERS}.", at_least=1
    )
    cross_rank: int | None = setting(None, f"Rank of the cross layers. Default: {CROSS_RANK}.", at_least=1)
    layer_norm: bool = setting(False, "Normalize the outputs of the MLPs' layers before each ReLU.")
    dropout: float = setting(
        0.0, "Probability that an output of a hidden layer of the MLPs is 0 in a training step.", at_least=0, below=1
    )
    id_dropout: float = setting(
        0.0,
        "Probability that the ids of a feature count as rare in a training step, which trains the row of rare ids for "
        "values that are new in later data; less for features with rare ids in training.",
        at_least=0,
        below=1,
    )
    wide: bool = setting(
        True,
        "Add first-order weights to the logit: one for every row of the tables, and one for each of "
        "32 quantile buckets of every dense feature.",
    )


@dataclass(frozen=True)
class OptimSettings:
    sparse_lr: float = setting(0.05, "Learning rate of full, hash and head tables (row-wise AdaGrad).", at_least=0)
    qr_lr: float = setting(
        None, "Learning rate of tables that combine rows. Default: 0.1 for mult, otherwise 0.05.", at_least=0
    )
    wide_lr: float = setting(
        None,
        "Learning rate of first-order weights (--wide). Default: "
        f"{', '.join(f'{rate:g} from {start}' for start, rate in WIDE_LR.items())} (--wide-start).",
        at_least=0,
    )
    wide_start: str = setting(
        None,
        "First-order weights start from a logistic regression of the training split (fitted) or at 0 (zero). Default: "
        f"fitted, if the split has at most {FITTED_EXAMPLES:,} examples.",
        choices=("fitted", "zero"),
    )
    sparse_weight_decay: float = setting(
        0.0,
        "Weight decay of embeddings: their gradient gets this multiple of the vectors that an example looks up.",
        at_least=0,
    )
    sparse_eps: float = setting(1e-8, "Epsilon of row-wise AdaGrad, added to the square root.", above=0)
    dense_optimizer: str = setting("shampoo", "Optimizer of the MLPs.", choices=DENSE_OPTIMIZERS)
    dense_lr: float = setting(
        None,
        "Learning rate of the MLPs. Default: " + ", ".join(f"{k} {v:g}" for k, v in DENSE_LR.items()) + ".",
        at_least=0,
    )
    dense_eps: float = setting(
        1e-6,
        "Epsilon of adagrad, adamw and Shampoo's grafting. Larger values damp steps from small, noisy gradients.",
        above=0,
    )
    momentum: float = setting(0.0, "Momentum of Shampoo and SGD.", at_least=0, below=1)
    beta1: float = setting(
        0.0,
        "Decay of the gradient average of Shampoo, adamw, signum and muon. If it is 0, adamw and signum use 0.9, muon "
        "0.95.",
        at_least=0,
        below=1,
    )
    beta2: float = setting(
        1.0, "Decay of Shampoo's statistics; 1 sums them. adamw uses 0.999 if this is 1.", above=0, at_most=1
    )
    weight_decay: float = setting(0.0, "Weight decay of the MLPs; decoupled, but L2 for adagrad and sgd.", at_least=0)
    grafting: str = setting(
        "adagrad", "Optimizer whose step length Shampoo takes.", choices=("adagrad", "rmsprop", "adam", "sgd", "none")
    )
    shampoo_block: int = setting(128, "Largest block size of Shampoo.", at_least=1)
    shampoo_statistics: int = setting(4, "Update Shampoo's factor matrices every N steps.", at_least=1)
    shampoo_sides: int = setting(2, "Number of sides of a matrix that Shampoo preconditions.", at_least=1, at_most=2)
    shampoo_frequency: int = setting(100, "Recompute Shampoo's root inverses every N steps.", at_least=1)
    shampoo_schedule: str = setting(
        "doubling",
        "When to recompute root inverses: every --shampoo-frequency steps (constant), or also at steps 1, 2, 4, ... "
        "before that, with factor matrices updated at every step at first and ever more rarely later (doubling).",
        choices=("constant", "doubling"),
    )
    shampoo_start: int = setting(
        None,
        "First step that Shampoo preconditions. Default: --shampoo-frequency, or 1 for the doubling schedule.",
        at_least=1,
    )
    shampoo_roots: str = setting(
        "eigh",
        "Compute root inverses by decomposition, a few blocks in each step (eigh), or by Newton's iteration, all "
        "blocks of one shape together (newton), as suits GPUs.",
        choices=("eigh", "newton"),
    )
    shampoo_overhead: float | None = setting(
        None,
        "Choose Shampoo's block size and intervals so that it adds at most this percentage to the time of 1,000 steps.",
        above=0,
        unit="%",
    )
    shampoo_epsilon: float = setting(
        1e-4, "Epsilon added to factor matrices, relative to their mean eigenvalue.", above=0
    )
    averaging: str = setting(
        "gpa",
        "Evaluate and save an average of the MLP weights: ema computes gradients at the weights; gpa and schedule-free "
        "between the weights and their average.",
        choices=AVERAGINGS,
    )
    averaging_horizon: float | None = setting(
        None,
        "Number of steps that gpa and ema average over. Default: a tenth of the steps so far, at most 1000.",
        at_least=1,
    )
    averaging_mu_y: float | None = setting(
        None,
        "Where to compute gradients, from the weights (0) to their average (1). Default: gpa 0.7, schedule-free 0.9.",
        at_least=0,
        at_most=1,
    )


@dataclass(frozen=True)
class ScheduleSettings:
    warmup_steps: int | None = setting(
        None,
        "Number of linear warmup steps. Default: a twentieth of the run (with --epochs auto, of its first epoch), from "
        "50 to 1,000, and at most a tenth of it.",
        at_least=0,
    )
    hold_steps: int = setting(0, "Number of steps at the full learning rate between warmup and decay.", at_least=0)
    decay: str = setting("none", "Shape of the learning rate decay.", choices=("none", "polynomial", "cosine"))
    decay_steps: int = setting(0, "Number of decay steps; 0 decays until the end of the run.", at_least=0)
    final_lr_factor: float = setting(0.0, "Final learning rate as a fraction of the full rate.", at_least=0, at_most=1)


@dataclass(frozen=True)
class TrainSettings:
    batch_size: int = setting(
        None,
        "Number of examples per step, over all ranks. Default: auto, a five-hundredth of the training examples as a "
        f"power of two from {SMALLEST_BATCH} to {LARGEST_BATCH:,}.",
        at_least=1,
        at_most=1 << 24,
        auto=True,
    )
    batch_schedule: str = setting(
        "constant",
        "Keep the batch (constant), or let it grow with the noise of gradients (gns); learning rates then grow by the "
        "root of the batch.",
        choices=("constant", "gns"),
    )
    gns_geometry: str = setting(
        "auto",
        "Norm in which gradients and their noise are compared. auto: that of the dense optimizer.",
        choices=("auto", *GEOMETRIES),
    )
    gns_theta: float | None = setting(
        None,
        "Grow the batch until the noise is this multiple of the gradient; smaller values give larger batches. Default: "
        "0.7 for l1, otherwise 1.",
        above=0,
    )
    batch_max: int | None = setting(
        None, "Largest batch of --batch-schedule gns. Default: 8 times the first.", at_least=1, at_most=1 << 24
    )
    epochs: int | None = setting(
        None,
        "Number of passes over the training split. Default: auto, which continues while validation NE falls; 1 for "
        "generated data.",
        at_least=1,
        at_most=1_000_000,
        auto=True,
    )
    max_steps: int = setting(0, "Stop after this many steps; 0 means no limit.", at_least=0)
    init_from: str | None = setting(
        None,
        "Start from the weights and optimizer states of this run, also on new data: tables grow with its "
        "vocabularies. Settings that are not given are those of the run.",
        metavar="RUN",
    )
    init_embeddings: str | None = setting(
        None,
        "Start rows of full tables with the vectors in this file, by value: Parquet with columns feature, value and "
        "vector, or safetensors. With --init-from, only rows of new values.",
        metavar="FILE",
    )
    refit_dense: bool = setting(
        False, "With --init-from, normalize dense features by the new data, not by that of the first run."
    )
    compress_a2a: str = setting(
        "none",
        "Compress what ranks exchange of embeddings and their gradients: to the K numbers of largest magnitude of each "
        "vector (topk:K), or to fp16, bf16 or int8. First-order weights are not compressed.",
        metavar="none|topk:K|fp16|bf16|int8",
    )
    compress_warmup: int = setting(0, "Number of steps before --compress-a2a begins.", at_least=0)
    compress_dense: str = setting(
        "none",
        "Average over ranks only one of RATIO numbers of the MLPs' gradients, those of largest magnitude; the others "
        "are added to the next gradients.",
        metavar="none|dct:RATIO",
    )
    dct_refresh: int | None = setting(
        None,
        f"Find thresholds of --compress-dense every N steps, and when the ratio has changed twofold. Default: "
        f"{DCT_REFRESH}.",
        at_least=1,
    )
    late_checks: bool = setting(
        False,
        "Read the loss of a step two steps later, so that training does not wait for a GPU. A step whose loss or "
        "gradient is not finite still changes no weight.",
    )
    copy_stream: bool = setting(
        False,
        "Copy the next batch to a GPU, and exchange its ids, in a CUDA stream of its own while a step computes.",
    )
    evaluations: int = setting(4, "Evaluate on the validation split N times per epoch.", at_least=1, at_most=1_000_000)
    patience: int = setting(
        None,
        "Stop after this many evaluations without improvement in NE; 0 means never. Default with --epochs auto, after "
        f"the first epoch: as many as {PATIENT_EPOCHS} epochs have, or one that is clearly worse; otherwise 0.",
        at_least=0,
    )
    checkpoint_every: int = setting(0, "Write a checkpoint every N steps; 0 means at every evaluation.", at_least=0)
    async_save: bool | None = setting(
        None,
        "Write checkpoints while training continues, from a copy of weights and states in host memory. Default: auto, "
        "on a CPU if the memory suffices; on a GPU training waits.",
        auto=True,
    )
    keep_checkpoints: int = setting(2, "Number of latest checkpoints to keep, besides the best.", at_least=1)
    log_every: int = setting(100, "Print progress at least every N steps; short runs print about 20 lines.", at_least=1)
    tracker: str | None = setting(
        None,
        "Send settings, metrics and results to these, separated by commas: tensorboard, mlflow, wandb.",
        metavar="NAME,...",
    )
    device: str = setting("auto", "Device to train on.", choices=("auto", "cpu", "cuda"))
    timeout: float = setting(
        300.0, "End the ranks when the process of one gives no sign of life for this many seconds.", at_least=5
    )
    precision: str = setting(
        "fp32",
        "Numeric precision: fp32, medium (fp32 with bf16 matrix products, on a GPU TF32) or bf16 (autocast).",
        choices=("fp32", "medium", "bf16"),
    )
    seed: int = setting(
        0, "Seed of the initial weights and of the order of examples.", at_least=0, at_most=LARGEST_SEED
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in `tracker`.

        Raises:
            UserError: if one is unknown or repeated.
        """
        if self.tracker is None:
            return ()
        return tuple(one_of("train.tracker", name, TRACKERS) for name in names_of("train.tracker", self.tracker))


@dataclass(frozen=True)
class Config:
    """The settings of a run: checked, completed and frozen.

    `Config.of(batch_size=512)` takes settings by name, `Config(train=TrainSettings(batch_size=512))` takes sections,
    and `resolve` takes files and flags. Values derived from other settings, such as a learning rate that was not
    given, are derived again by `change` and `dataclasses.replace`.

    Attributes:
        tables: the section `embeddings.tables`: settings of individual tables.
        grown: the section `embeddings.grown`: rows of earlier days, see `FeatureTable.before`.
        baseline: the settings of a baseline, which is fitted instead of a DLRM; None for a DLRM.
        examples: number of training examples, once the data is known.
        ranks: number of ranks, once it is known.
        derived: settings that were not given, with the values derived from other settings and from the data.

    Raises:
        UserError: for a value of the wrong type or out of range, or for contradictory settings.
    """

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    embeddings: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    tables: TableChanges = field(default_factory=dict)
    grown: Growth = field(default_factory=dict)
    baseline: BaselineSettings | None = None
    examples: int | None = field(default=None, repr=False, compare=False)
    ranks: int = field(default=1, repr=False, compare=False)
    derived: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, cls in (SECTIONS | (BASELINE if self.baseline is not None else {})).items():
            values = {key: value for key, value in vars(getattr(self, name)).items() if value is not None}
            places = {key: (value, f"{name}.{key}") for key, value in values.items()}
            self._set(name, cls(**checked_values(cls, places)))
        self._set("tables", table_changes(self.tables, "embeddings.tables"))
        self._set("grown", growth(self.grown, "embeddings.grown"))
        if self.data.path is not None:  # a run can be resumed from any directory
            self._set("data", replace(self.data, path=_whole_path(self.data.path)))
        if self.data.cache_dir is not None:
            self._set("data", replace(self.data, cache_dir=str(Path(self.data.cache_dir).resolve())))
        if self.train.init_from is not None:
            self._set("train", replace(self.train, init_from=str(Path(self.train.init_from).resolve())))
        if self.train.init_embeddings is not None:
            self._set("train", replace(self.train, init_embeddings=str(Path(self.train.init_embeddings).resolve())))
        self._complete()
        _check(self)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _complete(self) -> None:
        """Fills in the settings that were not given."""
        derived = {}
        for name, value in self._follows().items():
            section = section_of(name)
            present = getattr(getattr(self, section), name)
            if present is None or (name in self.derived and self.derived[name] == present):
                derived[name] = value
                self._set(section, replace(getattr(self, section), **{name: value}))
        self._set("derived", derived)

    def _follows(self) -> dict[str, Any]:
        """Values of settings that were not given."""
        wide_start = self._default_wide_start()
        endless = self.data.dataset == "synthetic" and self.data.path is None  # more rows rather than more passes
        epochs_given = self.train.epochs is not None and "epochs" not in self.derived
        return {
            "qr_lr": default_qr_lr(self.embeddings),
            "dense_lr": DENSE_LR[self.optim.dense_optimizer],
            "shampoo_start": 1 if self.optim.shampoo_schedule == "doubling" else self.optim.shampoo_frequency,
            "wide_start": wide_start,
            "wide_lr": WIDE_LR[wide_start if "wide_start" in self.derived else self.optim.wide_start or wide_start],
            "batch_size": batch_for(self.examples, self.ranks),
            "epochs": 1 if endless else None,
            "patience": 0 if endless or epochs_given else PATIENT_EPOCHS * self.train.evaluations,
        }

    def _default_wide_start(self) -> str:
        if not self.model.wide or self.train.init_from is not None or self.examples is None:
            return "zero"
        return "fitted" if self.examples <= FITTED_EXAMPLES else "zero"

    def fitted(self, examples: int | None, ranks: int) -> "Config":
        """The configuration for training data of this size: what was not given follows from it.

        Args:
            examples: of the training split; None for data that is large, or not known.
            ranks: that share a batch.

        Raises:
            UserError: if a batch size that was given cannot be split equally over ranks.
        """
        return replace(self, examples=examples, ranks=ranks)

    def on(self, ranks: int) -> "Config":
        """The configuration for this number of ranks, whatever the data.

        Raises:
            UserError: see `fitted`.
        """
        return replace(self, ranks=ranks)

    def at_largest_batch(self) -> "Config":
        """The configuration at the largest batch that its schedule may reach."""
        if self.train.batch_schedule == "constant":
            return self
        largest = largest_batch(self.train.batch_size, self.train.batch_max, self.ranks)
        return replace(self, train=replace(self.train, batch_size=largest))

    def for_scoring(self) -> "Config":
        """The configuration with a batch of at least `SCORING_BATCH`; smaller ones are slow to score."""
        size = self.train.batch_size
        return replace(self, train=replace(self.train, batch_size=size * -(-SCORING_BATCH // size)))

    @classmethod
    def of(cls, *, tables: Mapping[str, Mapping[str, Any]] | None = None, **settings: Any) -> "Config":
        """Creates a configuration from settings by name: `Config.of(dataset="synthetic", batch_size=512)`.

        Args:
            tables: settings of individual tables: pattern -> setting -> value.
            settings: typed values, or strings as on the command line.

        Raises:
            UserError: for an unknown or mistyped setting, a value out of range, or settings that contradict.
        """
        return cls(tables={pattern: dict(values) for pattern, values in (tables or {}).items()}).change(**settings)

    def change(self, **settings: Any) -> "Config":
        """Returns a copy with these settings changed, by name as in `of`.

        Raises:
            UserError: see `of`.
        """
        sections: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            sections.setdefault(section_of(name), {})[name] = (value, name)
        changed = {
            section: replace(getattr(self, section), **checked_values(SECTIONS[section], values))
            for section, values in sections.items()
        }
        # A value that is given is kept, even if it equals the derived one.
        derived = {name: value for name, value in self.derived.items() if name not in settings}
        return replace(self, **changed, derived=derived)

    def to_dict(self, *, derived: bool = True) -> dict[str, dict[str, Any]]:
        """Returns plain data for TOML: tuples become lists, and None is omitted.

        Args:
            derived: whether to include settings that were derived from others.
        """
        sections: dict[str, dict[str, Any]] = {
            section: {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in vars(getattr(self, section)).items()
                if value is not None and (derived or name not in self.derived)
            }
            for section in (SECTIONS if self.baseline is None else ("data", "train", *BASELINE))
        }
        if self.baseline is not None:
            sections["train"] = {name: sections["train"][name] for name in _SCORING if name in sections["train"]}
            return sections
        if self.tables:
            sections["embeddings"]["tables"] = {pattern: dict(values) for pattern, values in self.tables.items()}
        if self.grown:
            sections["embeddings"]["grown"] = {name: list(rows) for name, rows in self.grown.items()}
        return sections


SECTIONS: dict[str, type] = {
    "data": DataSettings,
    "model": ModelSettings,
    "embeddings": EmbeddingSettings,
    "optim": OptimSettings,
    "schedule": ScheduleSettings,
    "train": TrainSettings,
}
BASELINE: dict[str, type] = {"baseline": BaselineSettings}  # with [data], and these of [train]
_SCORING = ("batch_size", "device", "precision", "seed")
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
    """Merges the defaults, the file and the flags, in that order.

    Args:
        file: sections as read from TOML.
        flags: setting name -> string, only those that were typed.
        file_name: name of the file in messages.

    Raises:
        UserError: for an unknown or mistyped setting, a value out of range, or settings that contradict.
    """
    known = SECTIONS | (BASELINE if "baseline" in file else {})
    given: dict[str, dict[str, tuple[Any, str]]] = {name: {} for name in known}
    tables: TableChanges = {}
    grown: Growth = {}
    for section, values in file.items():
        if section not in known:
            raise not_a_section(section, values, file_name)
        if not isinstance(values, dict):
            raise UserError(f"{file_name}: {section} = {values!r} must be a section, [{section}]")
        for name, value in values.items():
            if (section, name) == ("embeddings", "tables"):
                tables = table_changes(value, f"{file_name}: embeddings.tables")
            elif (section, name) == ("embeddings", "grown"):
                grown = growth(value, f"{file_name}: embeddings.grown")
            else:
                check_section(name, section, file_name)
                given[section][name] = (value, f"{file_name}: {section}.{name}")
    for section, cls in known.items():
        for item in fields(cls):
            if item.name in flags:
                given[section][item.name] = (flags[item.name], flag_of(item))
    sections = {name: cls(**checked_values(cls, given[name])) for name, cls in known.items()}
    return Config(**sections, tables=tables, grown=grown)


def _whole_path(path: str) -> str:
    """The absolute path of a store, or its URL."""
    try:
        if is_remote(path):
            refuse_password(path)
            return path.rstrip("/")
        refuse_url(path)
    except DataError as problem:
        raise UserError(f"data.path = {problem.message}", problem.hint) from None
    return str(Path(path).resolve())


def not_a_section(name: str, value: Any, file_name: str) -> UserError:
    """The error for an unknown name at the top level."""
    if isinstance(value, dict):
        close = nearest(name, SECTIONS)
        hint = f"did you mean [{close}]?" if close else f"the sections are {', '.join(f'[{s}]' for s in SECTIONS)}"
        return UserError(f"{file_name}: [{name}] is not a section", hint)
    meant = names_meant(name, _SECTION_OF)
    if name in _SECTION_OF:
        return UserError(f"{file_name}: {name} is outside its section", f"move it to [{_SECTION_OF[name]}]")
    places = ", ".join(f"[{_SECTION_OF[m.split()[0]]}]" for m in meant)
    hint = f"{did_you_mean(meant)} (in {places})" if meant else "settings belong in sections such as [train]"
    return UserError(f"{file_name}: {name} is neither a section nor a setting", hint)


def check_section(name: str, section: str, file_name: str) -> None:
    """Refuses a setting that belongs to another section.

    Raises:
        UserError: naming the right section.
    """
    own = _SECTION_OF.get(name, section)
    if own != section:
        raise UserError(f"{file_name}: {section}.{name} is in the wrong section", f"move it to [{own}]")
    if section in SECTIONS and not hasattr(SECTIONS[section], name) and (meant := names_meant(name, _SECTION_OF)):
        places = ", ".join(sorted({f"[{_SECTION_OF[m.split()[0]]}]" for m in meant}))
        raise UserError(f"{file_name}: {section}.{name} is not a setting", f"{did_you_mean(meant)} (in {places})")


def _check(config: Config) -> None:
    """Refuses contradictory settings.

    Raises:
        UserError: naming both settings.
    """
    emb, model, optim, schedule = config.embeddings, config.model, config.optim, config.schedule
    _check_data(config.data)
    _check_batch(config)
    _ = config.train.trackers
    check_embeddings(emb, config.tables)
    size_known = config.examples is not None or "batch_size" not in config.derived
    check_batches(
        config.train.batch_schedule,
        geometry=config.train.gns_geometry,
        theta=config.train.gns_theta,
        largest=config.train.batch_max,
        first=config.train.batch_size if size_known else None,
        ranks=config.ranks,
        dense_optimizer=optim.dense_optimizer,
    )
    check_exchange(
        compress_a2a=config.train.compress_a2a,
        compress_warmup=config.train.compress_warmup,
        compress_dense=config.train.compress_dense,
        dct_refresh=config.train.dct_refresh,
        dim=emb.dim,
    )
    if emb.placement != "hbm" and (config.train.compress_a2a or "").startswith("topk"):
        raise UserError(
            f"embeddings.placement = {emb.placement} does not work with train.compress_a2a = "
            f"{config.train.compress_a2a}, which cuts rows for a while to score them, and not those in a cache",
            "--placement hbm, or --compress-a2a fp16",
        )
    if model.bottom_mlp[-1] != emb.dim:
        last, is_default = model.bottom_mlp[-1], model.bottom_mlp == ModelSettings().bottom_mlp
        fitting = (*model.bottom_mlp[:-1], emb.dim) if is_default else (*model.bottom_mlp, emb.dim)
        raise UserError(
            f"model.bottom_mlp = {shown(model.bottom_mlp)} ends in {last}, but embeddings.dim = {emb.dim}",
            f"--bottom-mlp {shown(fitting)} --dim {emb.dim}" + ("" if is_default else f", or --dim {last}"),
        )
    for name in ("cross_layers", "cross_rank"):
        if getattr(model, name) is not None and model.interaction != "dcn":
            raise UserError(
                f"model.{name} = {getattr(model, name)} needs model.interaction = dcn, not {model.interaction}"
            )
    if not model.wide and optim.wide_lr not in WIDE_LR.values():
        raise UserError(
            f"optim.wide_lr = {optim.wide_lr:g} is of the first-order weights, which model.wide = false omits",
            "omit --wide-lr or --no-wide",
        )
    if not model.wide and optim.wide_start == "fitted":
        raise UserError(
            "optim.wide_start = fitted is of the first-order weights, which model.wide = false omits",
            "omit --wide-start or --no-wide",
        )
    if config.train.init_from is not None and optim.wide_start == "fitted":
        raise UserError(
            "optim.wide_start = fitted does not work with train.init_from, whose weights are taken",
            "omit --wide-start or --init-from",
        )
    if model.top_mlp[-1] != 1:
        raise UserError(
            f"model.top_mlp = {shown(model.top_mlp)} must end in 1", f"--top-mlp {shown((*model.top_mlp, 1))}"
        )
    if config.train.refit_dense and config.train.init_from is None:
        raise UserError("train.refit_dense = true needs train.init_from", "--init-from RUN")
    if optim.shampoo_schedule == "constant" and optim.shampoo_start < optim.shampoo_frequency:
        raise UserError(
            f"optim.shampoo_start = {optim.shampoo_start} is before the first refresh, "
            f"optim.shampoo_frequency = {optim.shampoo_frequency}",
            f"raise --shampoo-start to {optim.shampoo_frequency}, lower --shampoo-frequency, or use "
            "--shampoo-schedule doubling",
        )
    if optim.shampoo_overhead is not None and optim.dense_optimizer != "shampoo":
        raise UserError(
            f"optim.shampoo_overhead = {optim.shampoo_overhead:g} needs optim.dense_optimizer = shampoo, "
            f"not {optim.dense_optimizer}"
        )
    if optim.shampoo_overhead is not None and optim.shampoo_roots != "eigh":
        raise UserError(
            f"optim.shampoo_overhead = {optim.shampoo_overhead:g} is measured for roots of a few blocks in each step, "
            f"and optim.shampoo_roots = {optim.shampoo_roots} computes all in one",
            "omit --shampoo-overhead or --shampoo-roots",
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
    if schedule.decay != "none" and not schedule.decay_steps and config.train.batch_schedule != "constant":
        raise UserError(
            f"schedule.decay = {schedule.decay} ends with the run, and train.batch_schedule = "
            f"{config.train.batch_schedule} has no planned number of steps",
            "the length of the decay with --decay-steps N",
        )
    if schedule.decay == "none" and schedule.decay_steps:
        raise UserError(
            f"schedule.decay_steps = {schedule.decay_steps} needs a decay", "--decay cosine or --decay polynomial"
        )


def _check_data(data: DataSettings) -> None:
    if size_of("data.cache_size", data.cache_size) < _SMALLEST_CACHE:
        raise UserError(f"data.cache_size = {data.cache_size} must be at least 64MiB", "--cache-size 64MiB")
    if data.dataset == "synthetic" and data.path is not None:
        raise UserError(
            f"data.dataset = synthetic contradicts data.path = {data.path}: synthetic data is generated",
            "omit --dataset or --data",
        )
    if data.path is None and data.dataset not in DATASETS:
        close = nearest(data.dataset, DATASETS)
        meant = f"did you mean {close!r}? " if close else ""
        raise UserError(
            f"data.dataset = {data.dataset!r} must be one of {', '.join(DATASETS)} if no path is given",
            f"{meant}use --data DIR for your own data",
        )


def batch_for(examples: int | None, ranks: int) -> int:
    """The batch for so many training examples: a five-hundredth of them, as a power of two; the largest for None.

    The same on 1, 2, 4 and 8 ranks; on other numbers the next multiple of them.
    """
    wanted = LARGEST_BATCH if examples is None else 2 ** round(math.log2(max(1, examples / 500)))
    size = min(max(wanted, SMALLEST_BATCH), LARGEST_BATCH)
    return size + -size % ranks


def _check_batch(config: Config) -> None:
    """Refuses a batch that cannot be split equally over the ranks; a derived one always can."""
    size, ranks = config.train.batch_size, config.ranks
    if size % ranks:
        raise UserError(
            f"train.batch_size = {size} cannot be split equally over {ranks} ranks",
            f"--batch-size {size + -size % ranks}",
        )
