"""The state of a run as stored in a checkpoint, and checks that a checkpoint fits a run."""

from collections.abc import Collection
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dlrmctl.data.reader import STREAM_ORDER
from dlrmctl.data.sealed import Values
from dlrmctl.data.source import Source
from dlrmctl.errors import UserError
from dlrmctl.optim.noise_scale import NoiseAverage
from dlrmctl.settings.config import Config
from dlrmctl.settings.embeddings import EmbeddingSettings
from dlrmctl.settings.exchange import table_codec

_OF_THE_DEVICES = {"sharding", "table_precision", "placement", "uvm_cache"}
_FIXED: dict[str, set[str] | None] = {  # None: all of the section
    "data": None,
    "model": None,
    "embeddings": {item.name for item in fields(EmbeddingSettings)} - _OF_THE_DEVICES,
    "optim": {"dense_optimizer", "grafting", "shampoo_block", "shampoo_sides", "momentum", "beta1", "averaging"},
    "train": {"batch_size", "seed", "compress_dense", "batch_schedule", "gns_geometry"},
}
_BEFORE = {"qr_layout": "quotient", "averaging": "none", "dense_inputs": "raw", "wide": False}


@dataclass(frozen=True)
class StepSums:
    """Sums over the examples of steps on all ranks: log loss, labels, predicted probabilities, each times its weight.

    `weight` is the sum of the weights, which is the number of examples if all count 1.
    """

    examples: float = 0.0
    loss: float = 0.0
    positives: float = 0.0
    predicted: float = 0.0
    weight: float = 0.0

    @classmethod
    def from_values(cls, values: Values) -> "StepSums":
        """Reads the sums in the entry `window`.

        Raises:
            DataError: if they are missing.
        """
        names = [item.name for item in fields(cls)]
        listed = values.entries.get("window")
        # Earlier versions stored the sums as a list.
        if isinstance(listed, list):
            sums = Values(dict(zip(names, listed, strict=False)), "window.")
        else:
            sums = values.inner("window")
        # In earlier versions, all examples counted 1.
        known = {name: sums.number(name) for name in names if name != "weight" or sums.has(name)}
        return cls(**{"weight": known["examples"], **known})

    def __add__(self, other: "StepSums") -> "StepSums":
        return StepSums(
            self.examples + other.examples,
            self.loss + other.loss,
            self.positives + other.positives,
            self.predicted + other.predicted,
            self.weight + other.weight,
        )


@dataclass(frozen=True)
class Exchanged:
    """What ranks exchanged while compression was on, sums over all ranks.

    Attributes:
        tables_raw, tables_sent: bytes of embeddings and their gradients, as float32 and as sent.
        dense_raw, dense_sent: bytes of gradients of the MLPs.
        numbers, kept: numbers of these gradients, and those that were sent.
    """

    tables_raw: int = 0
    tables_sent: int = 0
    dense_raw: int = 0
    dense_sent: int = 0
    numbers: int = 0
    kept: int = 0

    @classmethod
    def from_values(cls, values: Values) -> "Exchanged":
        """Reads the sums.

        Raises:
            DataError: if one is missing or invalid.
        """
        return cls(*(values.whole(item.name) for item in fields(cls)))

    def __add__(self, other: "Exchanged") -> "Exchanged":
        return Exchanged(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class RunState:
    """The state of a run; with the tensors, everything that a checkpoint stores.

    Attributes:
        batch: the next one of `epoch`.
        best_score: validation NE of the best step so far, or log loss if NE is not defined.
        last_ne: of the last evaluation on the validation split.
        window: sums since the last line of progress.
        steps_before: steps of the runs that this one started from, one after the other.
        ranks: number of ranks that saved it; 0 if an earlier version did.
        row: examples of `epoch` so far; None if an earlier version saved it, when batches were constant.
        batch_size: the global batch of the next step, if it is not that of the settings.
        noise: averages of the noise of gradients, for a batch that grows.
        exchanged: in all processes of the run so far.
        order: version of the order of examples in an epoch, see `data.reader.STREAM_ORDER`.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_score: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    last_ne: float | None = None
    finished: bool = False
    window: StepSums = field(default_factory=StepSums)
    steps_before: int = 0
    ranks: int = 0
    row: int | None = 0
    batch_size: int | None = None
    noise: NoiseAverage = field(default_factory=NoiseAverage)
    exchanged: Exchanged = field(default_factory=Exchanged)
    order: int = STREAM_ORDER

    @classmethod
    def from_values(cls, values: Values) -> "RunState":
        """Reads the state.

        Raises:
            DataError: if values are missing or invalid.
        """
        score = "best_score" if values.has("best_score") else "best_ne"  # its name in earlier versions
        return cls(
            step=values.whole("step"),
            epoch=values.whole("epoch"),
            batch=values.whole("batch"),
            best_score=values.number(score) if values.has(score) else None,
            best_step=values.whole("best_step") if values.has("best_step") else None,
            evaluations_without_gain=values.whole("evaluations_without_gain"),
            last_ne=values.number("last_ne") if values.has("last_ne") else None,
            finished=values.flag("finished"),
            window=StepSums.from_values(values),
            steps_before=values.whole("steps_before") if values.has("steps_before") else 0,
            ranks=values.whole("ranks") if values.has("ranks") else 0,
            row=values.whole("row") if values.has("row") else None,
            batch_size=values.whole("batch_size", least=1) if values.has("batch_size") else None,
            noise=values.optional("noise", _noise) or NoiseAverage(),
            exchanged=values.optional("exchanged", Exchanged.from_values) or Exchanged(),
            order=values.whole("order") if values.has("order") else 1,
        )

    def kept_numbers(self, compress_a2a: str) -> int | None:
        """The numbers of every row that the network has seen, with this `--compress-a2a`; None for all."""
        codec = table_codec(compress_a2a)
        return codec[1] if codec and codec[0] == "topk" and self.ranks > 1 and self.exchanged.tables_sent else None

    def to_state(self, config: Config, source: Source) -> dict[str, Any]:
        """The contents of a checkpoint's state.json."""
        return {
            "progress": asdict(self),
            "settings": config.to_dict(),
            "data": source.fingerprint(),
            "vocabulary": source.vocabulary_fingerprint(),
        }


def _noise(values: Values) -> NoiseAverage:
    return NoiseAverage(values.number("noise"), values.number("signal"), values.whole("estimates"))


@dataclass(frozen=True)
class SavedState:
    """The contents of a checkpoint's state.json, see `RunState.to_state`.

    Attributes:
        settings: sections of the run's settings.
        data, vocabulary: fingerprints of the training data.
    """

    progress: RunState
    settings: dict[str, dict[str, Any]]
    data: str
    vocabulary: str | None

    @classmethod
    def from_values(cls, values: Values) -> "SavedState":
        """Reads the state.

        Raises:
            DataError: if values are missing or invalid.
        """
        settings = values.inner("settings")
        return cls(
            RunState.from_values(values.inner("progress")),
            {section: dict(settings.inner(section).entries) for section in settings.entries},
            values.text("data"),
            values.text("vocabulary") if values.has("vocabulary") else None,
        )

    @property
    def kept_numbers(self) -> int | None:
        """See `RunState.kept_numbers`."""
        return self.progress.kept_numbers(str(self.settings.get("train", {}).get("compress_a2a", "none")))

    def progress_with(self, config: Config, source: Source, path: Path) -> RunState:
        """The state from which a run with these settings and this data continues.

        Args:
            path: of the checkpoint.

        Raises:
            UserError: if the checkpoint belongs to another model or other data.
        """
        same_shape(config, self.settings, path)
        if self.data != source.fingerprint():
            raise UserError(
                f"{path} was trained on other data ({self.data}) than this ({source.fingerprint()})",
                "pass the same prepared store with --data",
            )
        # A copy, whose averages are its own.
        return replace(self.progress, noise=replace(self.progress.noise))


def same_shape(ours: Config, saved: dict[str, Any], path: Path, *, sections: Collection[str] = tuple(_FIXED)) -> None:
    """Refuses settings that do not fit the tensors or the position of a checkpoint.

    Args:
        sections: the fixed sections to compare.

    Raises:
        UserError: naming the first setting that differs.
    """
    for section, names in _FIXED.items():
        if section not in sections:
            continue
        for item in fields(getattr(ours, section)):
            name, value = item.name, getattr(getattr(ours, section), item.name)
            if section == "data" and name in ("path", "dataset", "cache_dir", "cache_size"):
                continue  # data is compared by its fingerprint, not by its path or name
            value, default = (list(v) if isinstance(v, tuple) else v for v in (value, item.default))
            # A setting that an older checkpoint lacks had its default, or the value in _BEFORE.
            before = saved.get(section, {}).get(name, _BEFORE.get(name, default))
            if (names is None or name in names) and value != before:
                raise UserError(
                    f"{path} was trained with {section}.{name} = {before}, not {value}",
                    "continue with the same setting, or start a new run",
                )
    before = saved.get("embeddings", {}).get("tables", {})
    if not isinstance(before, dict):
        raise UserError(f"{path}: damaged: settings.embeddings.tables = {str(before)[:80]} must be an object")
    if "embeddings" in sections and list(ours.tables.items()) != list(before.items()):  # their order counts
        raise UserError(
            f"{path} was trained with embeddings.tables = {before}, not {ours.tables}",
            "continue with the same tables, or start a new run",
        )
