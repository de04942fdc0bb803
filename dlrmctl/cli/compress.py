"""The command `dlrmctl compress-embeddings`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from dlrmctl.cli import completion
from dlrmctl.cli.options import CHECKPOINTS, STORE, AsJson, option, with_settings
from dlrmctl.console.console import notice
from dlrmctl.errors import UserError
from dlrmctl.settings.parse import one_of, share, whole_number
from dlrmctl.settings.setting import coerce

WEIGHTS = ("auto", "adagrad", "counts", "uniform")
GOAL, TUNE, WHERE = "Goal (one of these)", "Fine-tuning", "Output"
_DEFAULTS = {
    "--keep-head": "0%",
    "--tables": "*",
    "--min-rows": "16",
    "--weights": "auto",
    "--checkpoint": "best",
    "--finetune-lr": "0.3",
}


def _option(flag: str, help: str, metavar: str | None = None, panel: str | None = None) -> Any:
    """An option that is None if it was not typed; its default is shown in the help."""
    default = rf" \[default: {_DEFAULTS[flag]}]" if flag in _DEFAULTS else ""
    return option(help + default, metavar, panel)


def _switch(flag: str, help: str, panel: str) -> Any:
    return typer.Option(flag, help=help, rich_help_panel=panel)


@with_settings(only=(*STORE, "batch_size"))
def compress_embeddings(
    source: Annotated[
        Path,
        typer.Argument(
            help="Run directory, checkpoint, or file of tensors (.safetensors, .pt).",
            metavar="CKPT",
            autocompletion=completion.runs,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Write the model to this directory.", metavar="DIR", rich_help_panel=WHERE),
    ],
    max_ne_increase: Annotated[
        str | None,
        _option("--max-ne-increase", "Find the smallest tables that increase NE by at most this much.", "0.1%", GOAL),
    ] = None,
    target_ratio: Annotated[
        str | None, _option("--target-ratio", "Find the smallest error at this compression ratio.", "16x", GOAL)
    ] = None,
    method: Annotated[
        str | None,
        _option(
            "--method",
            "Compress all tables with this method: fp16, int8, int4, int2, pca8-int4, rq2x256, pq4x256, qr-mult16, "
            "hash16, nile-pro8.",
            panel=GOAL,
        ),
    ] = None,
    expand: Annotated[
        bool, _switch("--expand", "Write the tables of a compressed model as plain tensors.", GOAL)
    ] = False,
    vectors: Annotated[
        bool, _switch("--vectors", "Write the short rows of a nile-pro model, for similarity search.", GOAL)
    ] = False,
    keep_head: Annotated[
        str | None, _option("--keep-head", "With --method, keep this fraction of the rows, by weight, at 8 bits.", "2%")
    ] = None,
    tables: Annotated[
        str | None, _option("--tables", "Compress the tables that match these patterns.", "GLOB,...")
    ] = None,
    min_rows: Annotated[str | None, _option("--min-rows", "Keep tables with fewer rows in float32.", "N")] = None,
    weights: Annotated[
        str | None, _option("--weights", "How to weight the rows of a table.", "|".join(WEIGHTS))
    ] = None,
    checkpoint: Annotated[str | None, _option("--checkpoint", "Checkpoint to compress.", "|".join(CHECKPOINTS))] = None,
    finetune_data: Annotated[
        str | None,
        _option(
            "--finetune-data", "Fine-tune on this store of new examples, prepared with --vocabulary-from.", "DIR", TUNE
        ),
    ] = None,
    finetune_steps: Annotated[
        str | None, _option("--finetune-steps", "Number of batches to train on. Default: all of DIR.", "N", TUNE)
    ] = None,
    finetune_lr: Annotated[
        str | None, _option("--finetune-lr", "Initial learning rate, as a multiple of the run's.", "X", TUNE)
    ] = None,
    freeze_mlps: Annotated[bool, _switch("--freeze-mlps", "Train only the tables.", TUNE)] = False,
    train_codes: Annotated[
        bool, _switch("--train-codes", "Train the codes of rows, not only their codebooks.", TUNE)
    ] = False,
    train_rounded: Annotated[
        bool, _switch("--train-rounded", "Compute with rows as they are stored: int8, int4, int2.", TUNE)
    ] = False,
    dry_run: Annotated[bool, _switch("--dry-run", "Print the report and write nothing.", WHERE)] = False,
    explain: Annotated[bool, _switch("--explain", "Show all evaluations that led to the choice.", WHERE)] = False,
    plot: Annotated[
        Path | None, _option("--plot", "Draw size and error to this file, .png or .svg.", "FILE", WHERE)
    ] = None,
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Compress the embedding tables of a trained model with a method, to a ratio, or within an NE budget.

    \b
    dlrmctl compress-embeddings runs/full -o small --max-ne-increase 0.1%
    dlrmctl compress-embeddings runs/full -o small --target-ratio 8x
    """
    goals = {
        "--max-ne-increase": max_ne_increase,
        "--target-ratio": target_ratio,
        "--method": method,
        "--expand": expand,
        "--vectors": vectors,
    }
    goal = _only_one(goals)
    tuning = {
        "--finetune-steps": finetune_steps,
        "--finetune-lr": finetune_lr,
        "--freeze-mlps": freeze_mlps,
        "--train-codes": train_codes,
        "--train-rounded": train_rounded,
    }
    texts = {
        "--keep-head": keep_head,
        "--tables": tables,
        "--min-rows": min_rows,
        "--weights": weights,
        "--checkpoint": checkpoint,
    }
    if goal in ("--expand", "--vectors"):
        others = texts | {"--finetune-data": finetune_data, **tuning, "--explain": explain, "--plot": plot}
        for flag in _typed(others | {"--data": flags.get("path"), "--batch-size": flags.get("batch_size")}):
            raise UserError(f"{flag} cannot be used with {goal}", "use it when compressing")
        notice("loading PyTorch")
        from dlrmctl.compress.expand import Target, export_vectors
        from dlrmctl.compress.expand import expand as write_plain

        (write_plain if expand else export_vectors)(source, Target(out, dry_run, json))
        return
    if keep_head is not None and share("--keep-head", keep_head) and method is None:
        raise UserError(f"--keep-head = {keep_head} needs --method", "the other goals choose heads automatically")
    if finetune_data is None and _typed(tuning):
        raise UserError(
            f"{_typed(tuning)[0]} needs --finetune-data",
            "prepare it: dlrmctl prepare criteo NEW_FILES --vocabulary-from STORE -o DIR",
        )
    chosen = {flag: _DEFAULTS[flag] if text is None else text for flag, text in texts.items()}
    chosen["--weights"] = one_of("--weights", chosen["--weights"], WEIGHTS)
    ratio = None if target_ratio is None else _above("--target-ratio", target_ratio.removesuffix("x"), 1, target_ratio)
    budget = None if max_ne_increase is None else share("--max-ne-increase", max_ne_increase, zero=False)
    head = share("--keep-head", chosen["--keep-head"])
    rows = whole_number("--min-rows", chosen["--min-rows"], at_least=1)
    lr_factor = _above("--finetune-lr", finetune_lr or _DEFAULTS["--finetune-lr"], 0)
    steps = None if finetune_steps is None else whole_number("--finetune-steps", finetune_steps, at_least=1)
    notice("loading PyTorch")
    from dlrmctl.compress.command import Given, compress_embeddings
    from dlrmctl.compress.request import FineTuneRequest, Request, parse_method

    if method is not None:
        learned = parse_method(method, 16, head).num_codes
        if train_codes and not learned:
            raise UserError(f"--train-codes: {method} has no codes", "--method rq2x256, or omit it")
    request = Request(method, ratio, budget, head, chosen["--tables"], rows, chosen["--weights"])
    finetune = None
    if finetune_data is not None:
        finetune = FineTuneRequest(finetune_data, steps, lr_factor, not freeze_mlps, train_codes, train_rounded)
    compress_embeddings(
        Given(source, out, chosen["--checkpoint"], flags, dry_run, explain, plot, json, finetune), request
    )


def _typed(flags: Mapping[str, object]) -> list[str]:
    """The flags that were typed."""
    return [flag for flag, value in flags.items() if value is not None and value is not False]


def _only_one(goals: Mapping[str, object]) -> str:
    """The goal that was typed.

    Raises:
        UserError: if there is not exactly one.
    """
    named = _typed(goals)
    if len(named) != 1:
        found = " and ".join(named) if named else "none"
        raise UserError(
            f"exactly one of {', '.join(goals)} is needed, found {found}", "--max-ne-increase 0.1% is a good start"
        )
    return named[0]


def _above(flag: str, text: str, bound: float, shown: str | None = None) -> float:
    number: float = coerce(text, float, flag)
    if not number > bound:
        raise UserError(f"{flag} = {shown or text} must be above {bound:g}")
    return number
