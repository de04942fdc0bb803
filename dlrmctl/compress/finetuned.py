"""Fine-tuning a compressed model for the command: the fresh data, the control beside it, and what both gained."""

from collections.abc import Mapping
from typing import Any

from data.source import Source
from data.store import Store
from dlrmctl.compress.finetune import FineTuning, Tuned, Tuner
from dlrmctl.compress.measured import measured
from dlrmctl.compress.progress import Telling
from dlrmctl.compress.request import FineTuneRequest
from dlrmctl.compress.trial import Trial
from dlrmctl.config import Config
from dlrmctl.console import print_table, warn
from dlrmctl.datasets import open_reader
from dlrmctl.errors import UserError
from dlrmctl.ranks import Ranks
from embeddings.compression.rules import Compressed


def open_fresh(request: FineTuneRequest, config: Config, trained_on: Mapping[str, Any], ranks: Ranks) -> FineTuning:
    """The data to fine-tune on.

    Args:
        trained_on: the state of the run's checkpoint.

    Raises:
        UserError, DataError: if it is not there, has other ids, or too few examples.
    """
    source: Source = Store(request.data)
    if source.vocabulary_fingerprint() != trained_on["vocabulary"]:
        raise UserError(
            f"--finetune-data {request.data}: numbers ids otherwise than the data the run was trained on",
            "dlrmctl prepare criteo NEW_FILES --vocabulary-from STORE -o DIR",
        )
    fresh = source.fingerprint() != trained_on["data"]
    if not fresh:
        warn(
            f"--finetune-data {request.data} is what the model was trained on. Seeing examples again makes these "
            "models worse, the uncompressed control too: compare with it, and use fresh data"
        )
    examples, batch_size = source.num_examples("train"), config.train.batch_size
    if examples < batch_size:
        raise UserError(
            f"--finetune-data {request.data}: has {examples:,} examples to train on, not one batch of {batch_size:,}",
            "more data, or a smaller --batch-size",
        )
    reader = open_reader(config, source, "train", ranks, training=True)
    steps = reader.num_batches if request.steps is None else request.steps
    if steps > reader.num_batches:
        raise UserError(
            f"--finetune-steps {steps:,}: {request.data} has {reader.num_batches:,} batches of {reader.batch_size:,}",
            "a second pass would replay examples; use fewer steps, or a smaller --batch-size",
        )
    return FineTuning(reader, steps, request.lr_factor, request.mlps, fresh)


def fine_tune(
    tuner: Tuner,
    how: FineTuning,
    trials: Mapping[str, Trial],
    original: Mapping[str, Compressed],
    replaced: Mapping[str, Compressed],
    report: dict[str, Any],
    tell: Telling,
) -> Tuned:
    """Trains the compressed model and the control; the report's splits are those of the fine-tuned model afterwards.

    Args:
        original: all tables of the trained model.
        replaced: those that were compressed.
        report: of the compression; its splits move to "finetune", under "before".
    """
    models = {"compressed": {**original, **replaced}, "control": original}
    tuned = tuner.tune(models, how, tell)
    student, control = tuned["compressed"], tuned["control"]
    part: dict[str, Any] = {
        "steps": how.steps,
        "batch_size": how.reader.batch_size,
        "lr_factor": how.lr_factor,
        "mlps": how.mlps,
        "fresh": how.fresh,
        "fixed": list(student.fixed),
        "log_loss": {name: model.loss for name, model in tuned.items()},
    }
    for split, trial in trials.items():
        after, beside = (trial.logits(model.tables, model.network) for model in (student, control))
        part[split] = {
            "before": report[split],
            "control": measured(trial, trial.logits_N, beside),
            "against_control": measured(trial, beside, after),
        }
        report[split] = measured(trial, trial.logits_N, after)
    report["finetune"] = part
    return student


def show_finetuning(report: Mapping[str, Any]) -> None:
    """A table on standard output: the rise of NE over the trained model, before and after, and the control's."""
    part, rows = report["finetune"], []
    for split in ("validation", "test"):
        if split in part and "ne" in part[split]["before"]:
            found = part[split]
            columns = (found["before"], report[split], found["control"], found["against_control"])
            rows.append(
                [split, *(f"{100 * c['ne_increase']:+.4f} ±{100 * c['ne_increase_se']:.4f} %" for c in columns)]
            )
    examples = "fresh examples" if part["fresh"] else "examples of the training data"
    title = f"NE after {part['steps']:,} steps of {part['batch_size']:,} {examples}"
    if not part["mlps"]:
        title += ", MLPs fixed"
    if part["fixed"]:
        title += f"; {', '.join(part['fixed'])} stayed as compressed"
    print_table(title, ["", "compressed", "fine-tuned", "control", "fine-tuned to control"], rows)
