"""The flags of `dlrmctl compress-embeddings`."""

from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli.options import AsJson, with_settings
from dlrmctl.errors import UserError
from dlrmctl.settings.parse import one_of, share, whole_number
from dlrmctl.settings.setting import coerce

WEIGHTS = ("auto", "adagrad", "counts", "uniform")
LR_FACTOR = "0.3"
GOAL, TUNE, WHERE = "What to reach: one of these", "Training afterwards", "Output"


@with_settings(only=("path", "batch_size"))
def compress_embeddings(
    source: Annotated[
        Path,
        typer.Argument(help="Run, checkpoint, or file of tensors (.safetensors, .pt).", metavar="CKPT"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.", rich_help_panel=WHERE)],
    max_ne_increase: Annotated[
        str | None,
        typer.Option(
            help="Smallest tables whose NE rises by at most this share.", metavar="0.1%", rich_help_panel=GOAL
        ),
    ] = None,
    target_ratio: Annotated[
        str | None, typer.Option(help="Least error at this size.", metavar="16x", rich_help_panel=GOAL)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="All tables alike: fp16, int8, int4, int2, pca8-int4, rq2x256, pq4x256, qr-mult16, hash16, nile-pro8.",
            rich_help_panel=GOAL,
        ),
    ] = None,
    expand: Annotated[
        bool, typer.Option("--expand", help="Write a compressed CKPT's tables as plain ones.", rich_help_panel=GOAL)
    ] = False,
    vectors: Annotated[
        bool,
        typer.Option("--vectors", help="Write a nile-pro CKPT's short rows, to search.", rich_help_panel=GOAL),
    ] = False,
    keep_head: Annotated[
        str, typer.Option(help="With --method: share of rows, the heaviest, kept at 8 bits.", metavar="2%")
    ] = "0%",
    tables: Annotated[str, typer.Option(help="Patterns of the tables to compress.", metavar="GLOB,...")] = "*",
    min_rows: Annotated[str, typer.Option(help="Smaller tables stay float32.", metavar="N")] = "16",
    weights: Annotated[str, typer.Option(help="What rows weigh by.", metavar="|".join(WEIGHTS))] = "auto",
    checkpoint: Annotated[str, typer.Option(help="Of a run: best, last or step-N.")] = "best",
    finetune_data: Annotated[
        Path | None,
        typer.Option(
            help="Store of fresh examples, prepared with --vocabulary-from.", metavar="DIR", rich_help_panel=TUNE
        ),
    ] = None,
    finetune_steps: Annotated[
        str | None,
        typer.Option(help="Batches to train on; all of DIR if not given.", metavar="N", rich_help_panel=TUNE),
    ] = None,
    finetune_lr: Annotated[
        str | None,
        typer.Option(
            help=rf"Times the run's learning rates at first. \[default: {LR_FACTOR}]", metavar="X", rich_help_panel=TUNE
        ),
    ] = None,
    freeze_mlps: Annotated[
        bool, typer.Option("--freeze-mlps", help="Train the tables alone.", rich_help_panel=TUNE)
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report, write nothing.", rich_help_panel=WHERE)] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show every evaluation behind the choice.", rich_help_panel=WHERE)
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the frontier: .png or .svg.", metavar="FILE", rich_help_panel=WHERE)
    ] = None,
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Make the embedding tables of a trained model smaller: to a method, a ratio, or a budget of NE."""
    goals = {"--max-ne-increase": max_ne_increase, "--target-ratio": target_ratio, "--method": method}
    named = (
        [flag for flag, value in goals.items() if value is not None] + ["--expand"] * expand + ["--vectors"] * vectors
    )
    if len(named) != 1:
        found = " and ".join(named) if named else "none"
        raise UserError(
            f"one of {', '.join(goals)}, --expand, --vectors is needed, found {found}",
            "--max-ne-increase 0.1% chooses by itself",
        )
    if expand or vectors:
        from dlrmctl.compress.expand import Target, export_vectors
        from dlrmctl.compress.expand import expand as write_plain

        others: dict[str, bool] = {
            "--keep-head": keep_head != "0%",
            "--tables": tables != "*",
            "--min-rows": min_rows != "16",
            "--weights": weights != "auto",
            "--checkpoint": checkpoint != "best",
            "--finetune-data": finetune_data is not None,
            "--finetune-steps": finetune_steps is not None,
            "--finetune-lr": finetune_lr is not None,
            "--freeze-mlps": freeze_mlps,
            "--explain": explain,
            "--plot": plot is not None,
            "--data": "path" in flags,
            "--batch-size": "batch_size" in flags,
        }
        for flag, given in others.items():
            if given:
                raise UserError(f"{flag} does not go with {named[0]}", "it belongs to the compression itself")
        (write_plain if expand else export_vectors)(source, Target(out, dry_run, json))
        return
    one_of("--weights", weights, WEIGHTS)
    ratio = None if target_ratio is None else coerce(target_ratio.removesuffix("x"), float, "--target-ratio")
    if ratio is not None and ratio <= 1:
        raise UserError(f"--target-ratio = {target_ratio} must be above 1")
    budget = None if max_ne_increase is None else share("--max-ne-increase", max_ne_increase, zero=False)
    head = share("--keep-head", keep_head)
    if head and method is None:
        raise UserError(f"--keep-head = {keep_head} needs --method", "the other goals choose heads by themselves")
    rows = whole_number("--min-rows", min_rows, at_least=1)
    lr_factor = coerce(LR_FACTOR if finetune_lr is None else finetune_lr, float, "--finetune-lr")
    if not lr_factor > 0:
        raise UserError(f"--finetune-lr = {finetune_lr} must be above 0")
    steps = None if finetune_steps is None else whole_number("--finetune-steps", finetune_steps, at_least=1)
    tuned_by = {
        "--finetune-steps": steps is not None,
        "--finetune-lr": finetune_lr is not None,
        "--freeze-mlps": freeze_mlps,
    }
    if finetune_data is None and any(tuned_by.values()):
        raise UserError(
            f"{next(flag for flag, given in tuned_by.items() if given)} needs --finetune-data",
            "dlrmctl prepare criteo NEW_FILES --vocabulary-from STORE -o DIR makes it",
        )
    from dlrmctl.compress.command import Given, compress_embeddings
    from dlrmctl.compress.request import FineTuneRequest, Request, parse_method

    if method is not None:
        parse_method(method, 16, head)
    goal = "method" if method is not None else "ratio" if ratio is not None else "budget"
    request = Request(goal, method, ratio, budget, head, tables, rows, weights)  # type: ignore[arg-type]
    tuning = None if finetune_data is None else FineTuneRequest(finetune_data, steps, lr_factor, not freeze_mlps)
    command_line = Given(source, out, checkpoint, flags, dry_run, explain, plot, json, tuning)
    compress_embeddings(command_line, request)
