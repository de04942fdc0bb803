"""The commands of `dlrmctl bench`."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dlrmctl.bench.delivery import Delivery
from dlrmctl.bench.measurements import (
    AllMeasurements,
    BaselineMeasurement,
    CompressionMeasurement,
    ConvergenceMeasurement,
    DataMeasurement,
    EmbeddingsMeasurement,
    Measurement,
    NoiseMeasurement,
    ShampooMeasurement,
    StepMeasurement,
    described,
)
from dlrmctl.cli.options import LAUNCH_PANEL, AsJson, Nproc, number_of_ranks, option, with_parameters, with_settings
from dlrmctl.console.console import notice
from dlrmctl.settings.parse import whole_number

bench_app = typer.Typer(help="Measure training on this machine.", no_args_is_help=True)


def _number(help: str, *default_of: str) -> Any:
    return option(f"{help} {described(*default_of)}", "N")


def _list(help: str, *default_of: str) -> Any:
    return option(f"{help} {described(*default_of)}" if default_of else help, "A,B,...")


def _file(flag: str, help: str, metavar: str, *more: str) -> Any:
    return typer.Option(flag, *more, help=help, metavar=metavar, rich_help_panel=LAUNCH_PANEL)


Quick = Annotated[
    bool,
    typer.Option(
        "--quick", help="Run small, short measurements; their results are rough.", rich_help_panel=LAUNCH_PANEL
    ),
]
Out = Annotated[Path | None, _file("--out", "Write the result to this JSON file.", "JSON", "-o")]
Plot = Annotated[Path | None, _file("--plot", "Draw the result, as .png or .svg.", "FILE")]
Against = Annotated[
    Path | None, _file("--against", "Compare with an earlier result and show changes beyond the noise.", "JSON")
]
_DELIVERY = {"json": (AsJson, False), "out": (Out, None), "plot": (Plot, None), "against": (Against, None)}


def _measures(command: Callable[..., Measurement]) -> Callable[..., None]:
    """Turns a function that reads a measurement into a command with options for its output."""

    def run(*, json: bool, out: Path | None, plot: Path | None, against: Path | None, **values: Any) -> None:
        work = command(**values)
        delivery = Delivery(work.command, json, out, plot, against, work.files)
        ranks = 1
        if work.configs:
            nproc = values.get("nproc", "1")
            work.check_ranks(whole_number("--nproc", nproc, at_least=1))
            ranks = number_of_ranks(work.configs[0], nproc)
        notice("loading PyTorch")
        measured = work.measure(ranks)
        if measured is not None:
            delivery.deliver(measured, work.show, work.options)

    own = inspect.signature(command).parameters.values()
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _DELIVERY.items()
    ]
    return with_parameters(run, [*own, *added], like=command)


@bench_app.command("step")
@with_settings()
@_measures
def bench_step(
    precisions: Annotated[str | None, _list("Precisions to compare.")] = None,
    embeddings: Annotated[str | None, _list("Table types to compare.")] = None,
    optimizers: Annotated[str | None, _list("Dense optimizers to compare.")] = None,
    batch_sizes: Annotated[str | None, _list("Batch sizes to compare.")] = None,
    exchanges: Annotated[str | None, _list("Values of --compress-a2a to compare, on several ranks.")] = None,
    rounds: Annotated[str | None, _number("Number of rounds to take medians over.", "step", "rounds")] = None,
    steps: Annotated[str | None, _number("Number of steps per round.", "step", "steps")] = None,
    rows_cap: Annotated[str | None, _number("Limit tables to this many rows.", "step", "rows_cap")] = None,
    trace: Annotated[
        Path | None, _file("--trace", "Write a trace of some steps for Chrome, and count what they wait for.", "JSON")
    ] = None,
    nproc: Nproc = "1",
    quick: Quick = False,
    *,
    flags: dict[str, str],
) -> Measurement:
    """Measure the parts of the training step and compare them with the limits of the machine.

    Each value of a list is one variant, which differs from the settings in this value only.
    """
    lists = {
        "precision": precisions,
        "embedding": embeddings,
        "dense_optimizer": optimizers,
        "batch_size": batch_sizes,
        "compress_a2a": exchanges,
    }
    numbers = {"rounds": rounds, "steps": steps, "rows_cap": rows_cap}
    return StepMeasurement.read(flags, lists | numbers, quick=quick, trace=trace)


@bench_app.command("shampoo")
@with_settings()
@_measures
def bench_shampoo(
    periods: Annotated[
        str | None, _number("Number of refresh periods to take medians over.", "shampoo", "periods")
    ] = None,
    nproc: Nproc = "1",
    quick: Quick = False,
    *,
    flags: dict[str, str],
) -> Measurement:
    """Compare the cost of Shampoo, Adagrad and AdamW on the MLPs, by part and by layer."""
    return ShampooMeasurement.read(flags, {"periods": periods}, quick=quick)


@bench_app.command("convergence")
@with_settings()
@_measures
def bench_convergence(
    optimizers: Annotated[
        str | None, _list("Dense optimizers; the first is the baseline.", "convergence", "optimizers")
    ] = None,
    lrs: Annotated[str | None, _list("Dense learning rates to try with each optimizer.", "convergence", "lrs")] = None,
    seeds: Annotated[str | None, _number("Number of runs per optimizer and rate.", "convergence", "seeds")] = None,
    quick: Quick = False,
    *,
    flags: dict[str, str],
) -> Measurement:
    """Measure steps and time to the baseline's best validation NE, with tuned learning rates."""
    return ConvergenceMeasurement.read(flags, {"optimizers": optimizers, "lrs": lrs, "seeds": seeds}, quick=quick)


@bench_app.command("embeddings")
@with_settings()
@_measures
def bench_embeddings(
    methods: Annotated[
        str | None,
        _list(
            "Table types, with settings if needed (qr:operation=add); the first is the baseline.",
            "embeddings",
            "methods",
        ),
    ] = None,
    factors: Annotated[
        str | None, _list("Factors of the table learning rates to try with each method.", "embeddings", "factors")
    ] = None,
    seeds: Annotated[str | None, _number("Number of runs per method after tuning.", "embeddings", "seeds")] = None,
    quick: Quick = False,
    *,
    flags: dict[str, str],
) -> Measurement:
    """Measure the NE that smaller tables cost, each tuned on one seed and compared on others."""
    return EmbeddingsMeasurement.read(flags, {"methods": methods, "factors": factors, "seeds": seeds}, quick=quick)


@bench_app.command("noise")
@with_settings()
@_measures
def bench_noise(
    steps: Annotated[str | None, _number("Number of training steps.", "noise", "steps")] = None,
    nproc: Nproc = "1",
    quick: Quick = False,
    *,
    flags: dict[str, str],
) -> Measurement:
    """Measure the noise of gradients in the course of a training, and the batch that it suggests."""
    return NoiseMeasurement.read(flags, {"steps": steps}, quick=quick)


@bench_app.command("data")
@_measures
def bench_data(
    data: Annotated[
        Path | None, typer.Option("--data", help="Read this store instead of generated data.", metavar="DIR")
    ] = None,
    rounds: Annotated[str | None, _number("Number of rounds to take medians over.", "data", "rounds")] = None,
    quick: Quick = False,
) -> Measurement:
    """Measure reading and preparing a store in rows per second and core, compared with other tools."""
    return DataMeasurement.read(data, {"rounds": rounds}, quick=quick)


@bench_app.command("baseline")
@with_settings(only=("path", "dataset", "synthetic_size", "synthetic_rows", "synthetic_seed", "device"))
@_measures
def bench_baseline(
    rounds: Annotated[str | None, _number("Number of fits by each program.", "baseline", "rounds")] = None,
    passes: Annotated[str | None, _number("Most passes over the data for each solver.", "baseline", "passes")] = None,
    quick: Quick = False,
    *,
    flags: dict[str, str],
) -> Measurement:
    """Time the fit of a baseline, compare it with scikit-learn and LightGBM, and compare solvers."""
    return BaselineMeasurement.read(flags, {"rounds": rounds, "passes": passes}, quick=quick)


@bench_app.command("compression")
@_measures
def bench_compression(
    rows: Annotated[str | None, _number("Rows of all tables together.", "compression", "rows")] = None,
    tables: Annotated[str | None, _number("Number of tables.", "compression", "tables")] = None,
    dim: Annotated[str | None, _number("Columns of the tables.", "compression", "dim")] = None,
    ratio: Annotated[str | None, _number("Compression ratio.", "compression", "ratio")] = None,
    rounds: Annotated[str | None, _number("Number of rounds to take medians over.", "compression", "rounds")] = None,
    quick: Quick = False,
) -> Measurement:
    """Time the compression of generated tables to a ratio."""
    texts = {"rows": rows, "tables": tables, "dim": dim, "ratio": ratio, "rounds": rounds}
    return CompressionMeasurement.read(texts, quick=quick)


@bench_app.command("all")
@with_settings()
@_measures
def bench_all(
    only: Annotated[str | None, _list("Run only these measurements.")] = None,
    quick: Quick = False,
    *,
    flags: dict[str, str],
) -> Measurement:
    """Run all measurements with these settings."""
    return AllMeasurements.read(flags, only=only, quick=quick)
