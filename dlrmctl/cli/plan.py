"""The command `dlrmctl plan`."""

from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli.options import AsJson, SettingsFile, option, with_settings
from dlrmctl.cli.train import training_settings
from dlrmctl.console.console import notice
from dlrmctl.errors import UserError
from dlrmctl.plan.request import ClusterRequest
from dlrmctl.plan.tables import PRESET_SETTINGS, PRESETS, chosen_schema, num_examples
from dlrmctl.settings.amounts import bandwidth_of, rate_of
from dlrmctl.settings.config import Config
from dlrmctl.settings.parse import one_of
from dlrmctl.settings.toml import read_settings
from dlrmctl.settings.typed import resolve_typed

WHOSE, WHERE = "Tables (default: those of the data)", "Machines (default: this one)"
SPEED = "Speed of a rank (default: measured on this machine)"


@with_settings()
def plan(
    preset: Annotated[
        str | None,
        option("Use the tables and model of a benchmark; other options change them.", "|".join(PRESETS), WHOSE),
    ] = None,
    rows: Annotated[str | None, option("Rows of each table, with one id per example.", "40M,39060,...", WHOSE)] = None,
    tables: Annotated[
        Path | None,
        option(r"Read tables from \[tables]: `name = rows` or `name = { rows = N, max_ids = N }`.", "FILE.toml", WHOSE),
    ] = None,
    nproc: Annotated[str | None, option("Number of ranks on this machine. \\[default: 1]", "N", WHERE)] = None,
    world_size: Annotated[str | None, option("Number of ranks of another cluster.", "N", WHERE)] = None,
    nodes: Annotated[str | None, option("Number of machines of that cluster. \\[default: 1]", "N", WHERE)] = None,
    hbm: Annotated[str | None, option("Memory of each GPU.", "80GiB", WHERE)] = None,
    ram: Annotated[str | None, option("Memory of each machine, for ranks on CPUs.", "512GiB", WHERE)] = None,
    flops: Annotated[str | None, option("Rate of matrix products.", "60TFLOP/s", SPEED)] = None,
    memory_bw: Annotated[str | None, option("Memory bandwidth.", "2TB/s", SPEED)] = None,
    intra_bw: Annotated[str | None, option("Bandwidth between ranks on the same machine.", "300GB/s", SPEED)] = None,
    inter_bw: Annotated[str | None, option("Bandwidth between ranks on different machines.", "25GB/s", SPEED)] = None,
    config: SettingsFile = None,
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Estimate the memory and time of a training on this machine or on another cluster.

    Takes the settings of `dlrmctl train`; allocates no tables and starts no ranks. The exit status is 1 if the model
    does not fit.

    \b
    dlrmctl plan --data DIR --nproc 2
    dlrmctl plan --preset mlperf --world-size 8 --hbm 80GiB
    """
    if preset is not None:
        preset = one_of("--preset", preset, tuple(PRESETS))
    named = {"--preset": preset, "--rows": rows, "--tables": tables, "--data": flags.get("path")}
    if flags.get("dataset") == "synthetic":
        named["--dataset synthetic"] = flags["dataset"]
    whose = [flag for flag, value in named.items() if value is not None]
    if len(whose) > 1:
        raise UserError(f"{whose[0]} and {whose[1]} both choose the tables", f"omit {whose[0]} or {whose[1]}")
    of_data = preset is None and rows is None and tables is None
    if "init_from" in flags and not of_data:
        raise UserError(f"--init-from needs the data that its tables grow with, not {whose[0]}", "--data DIR")
    settings = _settings(config, preset, flags)
    speeds = {
        "flops": None if flops is None else rate_of("--flops", flops),
        "memory_bandwidth": None if memory_bw is None else bandwidth_of("--memory-bw", memory_bw),
    }
    ranks = ClusterRequest.read(
        settings.train.device,
        nproc=nproc,
        world_size=world_size,
        nodes=nodes,
        hbm=hbm,
        ram=ram,
        intra_bw=intra_bw,
        inter_bw=inter_bw,
    )
    notice("loading PyTorch")
    if of_data and settings.train.init_from is not None and not settings.grown:
        from dlrmctl.training.warm_start import grown_settings

        settings = grown_settings(settings)
    schema, source = chosen_schema(settings, preset=preset, rows=rows, tables=tables)
    examples = num_examples(settings) if of_data else None
    if ranks.memory_bytes is None:
        _load_what_a_rank_loads()
    from dlrmctl.plan.report import plan_and_show

    fits = plan_and_show(settings, schema, ranks.cluster(), examples=examples, as_json=json, source=source, **speeds)
    raise typer.Exit(0 if fits else 1)


def _settings(config: Path | None, preset: str | None, flags: dict[str, str]) -> Config:
    if preset is None:
        return training_settings(config, flags)
    if config is not None:
        return resolve_typed(read_settings(config), flags, file_name=str(config))
    return resolve_typed(PRESET_SETTINGS[preset], flags, file_name=f"--preset {preset}")


def _load_what_a_rank_loads() -> None:
    """Imports what a training rank imports: its memory without a model is taken from this process."""
    import dlrmctl.training.train  # noqa: F401
