"""The commands under `dlrmctl bench`."""

from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.config import DENSE_OPTIMIZERS, resolve
from dlrmctl.console import print_json
from dlrmctl.errors import UserError
from dlrmctl.options import AsJson, one_of, whole_number, with_settings
from dlrmctl.settings import coerce

bench_app = typer.Typer(help="Measure on this machine.", no_args_is_help=True)


@bench_app.command("step")
@with_settings()
def bench_step(
    rounds: Annotated[str, typer.Option(help="Rounds; medians are over these.", metavar="N")] = "5",
    steps: Annotated[str, typer.Option(help="Steps per round.", metavar="N")] = "20",
    rows_cap: Annotated[str, typer.Option(help="Larger tables are cut to this many rows.", metavar="N")] = "1000000",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """The training step at Criteo-Kaggle shapes, against the bare matrix products in it."""
    settings = resolve({}, flags)
    numbers = {
        "rounds": whole_number("--rounds", rounds, at_least=1),
        "steps": whole_number("--steps", steps, at_least=1),
        "rows_cap": whole_number("--rows-cap", rows_cap, at_least=1),
    }
    from dlrmctl.bench.step import bench_step as measure
    from dlrmctl.bench.step import show_bench_step
    from dlrmctl.ranks import process_group

    with process_group(settings.train.device) as ranks:
        result = measure(settings, ranks, **numbers)
        if ranks.is_main:
            print_json(result) if json else show_bench_step(result)


@bench_app.command("shampoo")
@with_settings()
def bench_shampoo(
    periods: Annotated[str, typer.Option(help="Refresh periods; medians are over these.", metavar="N")] = "5",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Shampoo beside Adagrad and AdamW on the MLPs, by part and by layer."""
    settings = resolve({}, flags)
    number = whole_number("--periods", periods, at_least=1)
    from dlrmctl.bench.shampoo import bench_shampoo as measure
    from dlrmctl.bench.shampoo import show_bench_shampoo
    from dlrmctl.ranks import process_group

    with process_group(settings.train.device) as ranks:
        result = measure(settings, ranks, periods=number)
        if ranks.is_main:
            print_json(result) if json else show_bench_shampoo(result)


@bench_app.command("convergence")
@with_settings()
def bench_convergence(
    optimizers: Annotated[str, typer.Option(help="Dense optimizers; the first is the baseline.")] = "adagrad,shampoo",
    lrs: Annotated[str, typer.Option(help="Dense learning rates to try with each.")] = "0.003,0.01,0.03",
    seeds: Annotated[str, typer.Option(help="Runs per optimizer and rate.", metavar="N")] = "3",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Steps and time until the first optimizer's best validation NE, learning rates tuned alike."""
    settings = resolve({}, flags)
    names = optimizers.split(",")
    for name in names:
        one_of("--optimizers", name, DENSE_OPTIMIZERS)
    rates = [coerce(text, float, "--lrs") for text in lrs.split(",")]
    number = whole_number("--seeds", seeds, at_least=1)
    from dlrmctl.bench.convergence import bench_convergence as measure
    from dlrmctl.bench.convergence import show_bench_convergence
    from dlrmctl.ranks import process_group

    with process_group(settings.train.device) as ranks:
        result = measure(settings, ranks, optimizers=names, lrs=rates, seeds=number)
        if ranks.is_main:
            print_json(result) if json else show_bench_convergence(result)


@bench_app.command("embeddings")
@with_settings()
def bench_embeddings(
    methods: Annotated[
        str,
        typer.Option(help="Kinds of tables, also with settings (qr:operation=add); the first is the baseline."),
    ] = "full,hash,qr",
    factors: Annotated[str, typer.Option(help="Factors of the tables' learning rates to try with each.")] = "0.3,1,3",
    seeds: Annotated[str, typer.Option(help="Runs per method after tuning.", metavar="N")] = "3",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """What smaller tables cost in NE: tuned alike on one seed, compared on others."""
    settings = resolve({}, flags)
    names = methods.split(",")
    if len(set(names)) < len(names):
        raise UserError(f"--methods = {methods!r} names one method twice")
    numbers = [coerce(text, float, "--factors") for text in factors.split(",")]
    if min(numbers) <= 0:
        raise UserError(f"--factors = {factors!r} must all be above 0")
    count = whole_number("--seeds", seeds, at_least=1)
    from dlrmctl.bench.embeddings import bench_embeddings as measure
    from dlrmctl.bench.embeddings import method_settings, show_bench_embeddings
    from dlrmctl.ranks import process_group

    for name in names:
        method_settings(settings, name)
    with process_group(settings.train.device) as ranks:
        result = measure(settings, ranks, methods=names, factors=numbers, seeds=count)
        if ranks.is_main:
            print_json(result) if json else show_bench_embeddings(result)


@bench_app.command("data")
def bench_data(
    data: Annotated[
        Path | None, typer.Option("--data", help="A store to read, in place of generated rows.", metavar="DIR")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few rows; the figures are rough.")] = False,
    rounds: Annotated[str, typer.Option(help="Rounds; medians are over these.", metavar="N")] = "3",
    json: AsJson = False,
) -> None:
    """Reading a store and preparing one: rows per second of a core, beside the machine's limits and other tools."""
    number = whole_number("--rounds", rounds, at_least=1)
    from dlrmctl.bench.data import bench_data as measure
    from dlrmctl.bench.data import show_bench_data

    result = measure(data, rounds=number, quick=quick)
    print_json(result) if json else show_bench_data(result)
