"""Where a run stands, and whether a checkpoint may be gone on with."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dlrmctl.data.source import Source
from dlrmctl.errors import UserError
from dlrmctl.settings.config import Config
from dlrmctl.settings.embeddings import EmbeddingSettings

_FIXED: dict[str, set[str] | None] = {  # None: all of the section
    "data": None,
    "model": None,
    "embeddings": {item.name for item in fields(EmbeddingSettings)} - {"sharding"},
    "optim": {"dense_optimizer", "grafting", "shampoo_block", "shampoo_sides", "momentum", "beta1"},
    "train": {"batch_size", "seed"},
}
_BEFORE = {"qr_layout": "quotient"}


@dataclass(frozen=True)
class StepSums:
    """What steps saw, summed over their examples on all ranks: log loss, labels, predicted probabilities."""

    examples: float = 0.0
    loss: float = 0.0
    positives: float = 0.0
    predicted: float = 0.0

    def __add__(self, other: "StepSums") -> "StepSums":
        return StepSums(
            self.examples + other.examples,
            self.loss + other.loss,
            self.positives + other.positives,
            self.predicted + other.predicted,
        )


@dataclass
class RunState:
    """Where a run stands; with the tensors, all that a checkpoint needs.

    Attributes:
        batch: the next one of `epoch`.
        best_score: validation NE of the best step so far; its log loss where NE is not defined.
        window: sums since the last line of progress.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_score: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    finished: bool = False
    window: StepSums = field(default_factory=StepSums)

    @classmethod
    def from_state(cls, state: dict[str, Any], config: Config, source: Source, path: Path) -> "RunState":
        """The progress in a checkpoint's state.

        Raises:
            UserError: if the checkpoint belongs to another model or other data than the settings name.
        """
        same_shape(config, state["settings"], path)
        if state["data"] != source.fingerprint():
            raise UserError(
                f"{path}: was trained on other data ({state['data']}) than is given ({source.fingerprint()})",
                "name the same prepared store with --data",
            )
        progress = dict(state["progress"])
        window = progress.pop("window")
        if "best_ne" in progress:  # what checkpoints of before call it
            progress["best_score"] = progress.pop("best_ne")
        # Checkpoints of before kept the sums as a list.
        return cls(**progress, window=StepSums(*window) if isinstance(window, list) else StepSums(**window))

    def to_state(self, config: Config, source: Source) -> dict[str, Any]:
        """What a checkpoint keeps beside its tensors."""
        return {
            "progress": asdict(self),
            "settings": config.to_dict(),
            "data": source.fingerprint(),
            "vocabulary": source.vocabulary_fingerprint(),
        }


def same_shape(ours: Config, saved: dict[str, Any], path: Path, *, sections: Collection[str] = tuple(_FIXED)) -> None:
    """Refuses settings that a checkpoint's tensors or position do not fit.

    Args:
        sections: which of the fixed ones matter.

    Raises:
        UserError: naming the first setting that differs.
    """
    for section, names in _FIXED.items():
        if section not in sections:
            continue
        for item in fields(getattr(ours, section)):
            name, value = item.name, getattr(getattr(ours, section), item.name)
            if section == "data" and name == "path":
                continue  # the fingerprint decides whether moved data is the same
            value, default = (list(v) if isinstance(v, tuple) else v for v in (value, item.default))
            # A setting that came later had its default, or another one then.
            before = saved.get(section, {}).get(name, _BEFORE.get(name, default))
            if (names is None or name in names) and value != before:
                raise UserError(
                    f"{path}: was trained with {section}.{name} = {before}, this run asks for {value}",
                    "go on with the same setting, or start a new run",
                )
    before = saved.get("embeddings", {}).get("tables", {})
    if "embeddings" in sections and list(ours.tables.items()) != list(before.items()):  # their order counts
        raise UserError(
            f"{path}: was trained with embeddings.tables = {before}, this run asks for {ours.tables}",
            "go on with the same tables, or start a new run",
        )
