"""The commands under `dlrmctl bench`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.bench import measurements
from dlrmctl.bench.delivery import Delivery
from dlrmctl.bench.measurements import Measurement, all_measurements, described
from dlrmctl.cli.options import LAUNCH_PANEL, AsJson, Nproc, launch_or_go_on, with_settings
from dlrmctl.errors import UserError
from dlrmctl.settings.config import Config, check_batch
from dlrmctl.settings.parse import whole_number

bench_app = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
_LIST = "A,B,..."
Quick = Annotated[
    bool,
    typer.Option("--quick", help="Small and short; the figures are rough.", rich_help_panel=LAUNCH_PANEL),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="File for the result as JSON.", metavar="JSON", rich_help_panel=LAUNCH_PANEL),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", help="Picture of the result, .png or .svg.", metavar="FILE", rich_help_panel=LAUNCH_PANEL),
]
Against = Annotated[
    Path | None,
    typer.Option(
        "--against",
        help="An earlier result; says what changed beyond the noise.",
        metavar="JSON",
        rich_help_panel=LAUNCH_PANEL,
    ),
]


@bench_app.command("step")
@with_settings()
def bench_step(
    precisions: Annotated[str | None, typer.Option(help="Precisions to compare.", metavar=_LIST)] = None,
    embeddings: Annotated[str | None, typer.Option(help="Kinds of tables to compare.", metavar=_LIST)] = None,
    optimizers: Annotated[str | None, typer.Option(help="Dense optimizers to compare.", metavar=_LIST)] = None,
    batch_sizes: Annotated[str | None, typer.Option(help="Batch sizes to compare.", metavar=_LIST)] = None,
    rounds: Annotated[
        str | None, typer.Option(help=f"Rounds; medians are over these. {described('step', 'rounds')}", metavar="N")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help=f"Steps per round. {described('step', 'steps')}", metavar="N")
    ] = None,
    rows_cap: Annotated[
        str | None,
        typer.Option(help=f"Larger tables are cut to this many rows. {described('step', 'rows_cap')}", metavar="N"),
    ] = None,
    nproc: Nproc = "1",
    quick: Quick = False,
    json: AsJson = False,
    out: Out = None,
    plot: Plot = None,
    against: Against = None,
    *,
    flags: dict[str, str],
) -> None:
    """The training step by part, against its floor and the machine's limits.

    Lists compare: every value is a variant that differs from the settings in this alone.
    """
    lists = {"precision": precisions, "embedding": embeddings, "dense_optimizer": optimizers, "batch_size": batch_sizes}
    numbers = {"rounds": rounds, "steps": steps, "rows_cap": rows_cap}
    work = measurements.step(flags, lists | numbers, quick=quick)
    _deliver(work, Delivery("step", json, out, plot, against), nproc)


@bench_app.command("shampoo")
@with_settings()
def bench_shampoo(
    periods: Annotated[
        str | None,
        typer.Option(help=f"Refresh periods; medians are over these. {described('shampoo', 'periods')}", metavar="N"),
    ] = None,
    nproc: Nproc = "1",
    quick: Quick = False,
    json: AsJson = False,
    out: Out = None,
    plot: Plot = None,
    against: Against = None,
    *,
    flags: dict[str, str],
) -> None:
    """Shampoo beside Adagrad and AdamW on the MLPs, by part and by layer."""
    work = measurements.shampoo(flags, {"periods": periods}, quick=quick)
    _deliver(work, Delivery("shampoo", json, out, plot, against), nproc)


@bench_app.command("convergence")
@with_settings()
def bench_convergence(
    optimizers: Annotated[
        str | None,
        typer.Option(
            help=f"Dense optimizers; the first is the baseline. {described('convergence', 'optimizers')}",
            metavar=_LIST,
        ),
    ] = None,
    lrs: Annotated[
        str | None,
        typer.Option(help=f"Dense learning rates to try with each. {described('convergence', 'lrs')}", metavar=_LIST),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help=f"Runs per optimizer and rate. {described('convergence', 'seeds')}", metavar="N")
    ] = None,
    quick: Quick = False,
    json: AsJson = False,
    out: Out = None,
    plot: Plot = None,
    against: Against = None,
    *,
    flags: dict[str, str],
) -> None:
    """Steps and time until the first optimizer's best validation NE, learning rates tuned alike."""
    work = measurements.convergence(flags, {"optimizers": optimizers, "lrs": lrs, "seeds": seeds}, quick=quick)
    _deliver(work, Delivery("convergence", json, out, plot, against))


@bench_app.command("embeddings")
@with_settings()
def bench_embeddings(
    methods: Annotated[
        str | None,
        typer.Option(
            help="Kinds of tables, also with settings (qr:operation=add); the first is the baseline. "
            + described("embeddings", "methods"),
            metavar=_LIST,
        ),
    ] = None,
    factors: Annotated[
        str | None,
        typer.Option(
            help=f"Factors of the tables' learning rates to try with each. {described('embeddings', 'factors')}",
            metavar=_LIST,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help=f"Runs per method after tuning. {described('embeddings', 'seeds')}", metavar="N"),
    ] = None,
    quick: Quick = False,
    json: AsJson = False,
    out: Out = None,
    plot: Plot = None,
    against: Against = None,
    *,
    flags: dict[str, str],
) -> None:
    """What smaller tables cost in NE: tuned alike on one seed, compared on others."""
    work = measurements.embeddings(flags, {"methods": methods, "factors": factors, "seeds": seeds}, quick=quick)
    _deliver(work, Delivery("embeddings", json, out, plot, against))


@bench_app.command("data")
def bench_data(
    data: Annotated[
        Path | None, typer.Option("--data", help="A store to read, in place of generated rows.", metavar="DIR")
    ] = None,
    rounds: Annotated[
        str | None, typer.Option(help=f"Rounds; medians are over these. {described('data', 'rounds')}", metavar="N")
    ] = None,
    quick: Quick = False,
    json: AsJson = False,
    out: Out = None,
    plot: Plot = None,
    against: Against = None,
) -> None:
    """Reading a store and preparing one: rows per second of a core, beside the machine's limits and other tools."""
    work = measurements.data(data, {"rounds": rounds}, quick=quick)
    _deliver(work, Delivery("data", json, out, plot, against))


@bench_app.command("all")
@with_settings()
def bench_all(
    only: Annotated[str | None, typer.Option(help="Some of them alone.", metavar=_LIST)] = None,
    quick: Quick = False,
    json: AsJson = False,
    out: Out = None,
    plot: Plot = None,
    against: Against = None,
    *,
    flags: dict[str, str],
) -> None:
    """All of them, each as its own command runs it with these settings."""
    _deliver(all_measurements(flags, only=only, quick=quick), Delivery("all", json, out, plot, against))


def _deliver(work: Measurement, delivery: Delivery, nproc: str = "1") -> None:
    if work.configs:
        _check_variants(work.configs[1:], whole_number("--nproc", nproc, at_least=1))
        launch_or_go_on(work.configs[0], nproc)
    measured = work.run()
    if measured is not None:
        delivery.deliver(measured, work.show, work.options)


def _check_variants(configs: Sequence[Config], ranks: int) -> None:
    for config in configs:
        try:
            check_batch(config, ranks)
        except UserError as error:
            raise UserError(error.message) from None  # its hint is of --batch-size, and these came from a list
