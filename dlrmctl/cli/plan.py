"""The command `dlrmctl plan`: its flags, read without loading torch."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlrmctl.cli.options import LAUNCH_PANEL, AsJson, with_settings
from dlrmctl.data.schema import Schema
from dlrmctl.errors import UserError
from dlrmctl.plan.amounts import bandwidth_of, rate_of, size_of
from dlrmctl.plan.tables import PRESET_SETTINGS, PRESETS, rows_of, schema_of_data, schema_of_file, schema_of_rows
from dlrmctl.settings.config import Config, resolve
from dlrmctl.settings.parse import one_of, whole_number
from dlrmctl.settings.toml import read_toml

if TYPE_CHECKING:
    from dlrmctl.plan.cluster import Cluster

WHOSE, WHERE, SPEED = "Whose tables (default: the data of the settings)", "Where", "Rates (default: measured here)"
MOST_RANKS = 4096


def _option(help: str, metavar: str, panel: str) -> Any:
    return typer.Option(help=help, metavar=metavar, rich_help_panel=panel)


@with_settings()
def plan(
    preset: Annotated[
        str | None, _option("Tables and model of a benchmark; typed flags change it.", "|".join(PRESETS), WHOSE)
    ] = None,
    rows: Annotated[str | None, _option("Rows of the tables, one-hot.", "40M,39060,...", WHOSE)] = None,
    tables: Annotated[
        Path | None,
        _option(r"\[tables] with name = rows, or name = { rows = N, max_ids = N }.", "FILE.toml", WHOSE),
    ] = None,
    nproc: Annotated[str | None, _option("Ranks on this machine.  \\[default: 1]", "N", WHERE)] = None,
    world_size: Annotated[str | None, _option("Ranks of a described cluster.", "N", WHERE)] = None,
    nodes: Annotated[str | None, _option("Machines they are on.  \\[default: 1]", "N", WHERE)] = None,
    hbm: Annotated[str | None, _option("Memory of each GPU.", "80GiB", WHERE)] = None,
    ram: Annotated[str | None, _option("Memory of each node, for ranks on CPUs.", "512GiB", WHERE)] = None,
    flops: Annotated[str | None, _option("Matrix products of a rank.", "60TFLOP/s", SPEED)] = None,
    memory_bw: Annotated[str | None, _option("Memory of a rank.", "2TB/s", SPEED)] = None,
    intra_bw: Annotated[str | None, _option("From a rank to those of its node.", "300GB/s", SPEED)] = None,
    inter_bw: Annotated[str | None, _option("From a rank to those of other nodes.", "25GB/s", SPEED)] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="Settings file; typed flags override it.", rich_help_panel=LAUNCH_PANEL),
    ] = None,
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Memory and time of a training before it is launched, here or on a cluster that is not; status 1: does not fit.

    Takes the settings of `dlrmctl train`. No table is allocated and no rank started.
    """
    if preset is not None:
        one_of("--preset", preset, tuple(PRESETS))
    named = {"--preset": preset, "--rows": rows, "--tables": tables, "--data": flags.get("path")}
    if flags.get("dataset") == "synthetic":
        named["--dataset synthetic"] = flags["dataset"]
    whose = [flag for flag, value in named.items() if value is not None]
    if len(whose) > 1:
        raise UserError(f"{whose[0]} and {whose[1]} both say whose tables", f"leave out {whose[0]} or {whose[1]}")
    settings = _settings(config, preset, flags)
    speeds = {
        "flops": _given("--flops", flops, rate_of),
        "memory_bandwidth": _given("--memory-bw", memory_bw, bandwidth_of),
    }
    exchange = _given("--intra-bw", intra_bw, bandwidth_of), _given("--inter-bw", inter_bw, bandwidth_of)
    here = _ranks_here(settings, nproc, world_size, nodes, hbm, ram, between_nodes=inter_bw is not None)
    schema, source = _schema(settings, preset, rows, tables)
    cluster = here(*exchange)
    from dlrmctl.plan.report import plan_and_show

    fits = plan_and_show(settings, schema, cluster, as_json=json, source=source, **speeds)
    raise typer.Exit(0 if fits else 1)


def _given(flag: str, text: str | None, read: Callable[[str, str], float]) -> float | None:
    return None if text is None else read(flag, text)


def _settings(config: Path | None, preset: str | None, flags: dict[str, str]) -> Config:
    if config is not None:
        return resolve(read_toml(config), flags, file_name=str(config))
    return resolve(PRESET_SETTINGS[preset] if preset else {}, flags, file_name=f"--preset {preset}")


def _schema(config: Config, preset: str | None, rows: str | None, tables: Path | None) -> "tuple[Schema, str]":
    """The tables, and what to call them."""
    if preset is not None:
        return schema_of_rows(list(PRESETS[preset])), f"{preset} tables"
    if rows is not None:
        numbers = rows_of("--rows", rows)
        return schema_of_rows(numbers), f"{len(numbers)} given tables"
    if tables is not None:
        return schema_of_file(tables), str(tables)
    if config.data.dataset == "synthetic":
        return schema_of_data(config), f"synthetic data, {config.data.synthetic_size}"
    return schema_of_data(config), config.data.path or f"{config.data.dataset} data"


def _ranks_here(
    config: Config,
    nproc: str | None,
    world_size: str | None,
    nodes: str | None,
    hbm: str | None,
    ram: str | None,
    *,
    between_nodes: bool,
) -> "Callable[[float | None, float | None], Cluster]":
    """Checks what is typed; the ranks themselves need torch, so they come later, given two bandwidths.

    Args:
        between_nodes: whether a bandwidth between nodes is given.
    """
    described = {"--world-size": world_size, "--nodes": nodes, "--hbm": hbm, "--ram": ram}
    typed = [flag for flag, text in described.items() if text is not None]
    if nproc is not None and typed:
        raise UserError(f"--nproc is for this machine and {typed[0]} for another", f"leave out --nproc or {typed[0]}")
    if not typed and between_nodes:
        raise UserError(
            "--inter-bw is for ranks on several nodes, and this machine is one",
            "leave it out, or describe the nodes: --nodes 2 --world-size 16 --hbm 80GiB",
        )
    if not typed:
        number = _at_most("--nproc", whole_number("--nproc", nproc or "1", at_least=1))

        def local(intra: float | None, inter: float | None) -> "Cluster":
            import dlrmctl.training.train  # noqa: F401 (a rank takes what this process takes once it has loaded the same)
            from dlrmctl.plan.cluster import this_machine

            return this_machine(config.train.device, number, intra_bandwidth=intra)

        return local
    if hbm is not None and ram is not None:
        raise UserError("--hbm is for GPUs and --ram for ranks on CPUs", "leave out one of them")
    if hbm is None and ram is None:
        raise UserError(f"{typed[0]} needs the memory of the ranks", "--hbm 80GiB, or --ram 512GiB for ranks on CPUs")
    num_nodes = whole_number("--nodes", nodes or "1", at_least=1)
    size = _at_most("--world-size", whole_number("--world-size", world_size or str(num_nodes), at_least=1))
    if size % num_nodes:
        more = size + -size % num_nodes
        raise UserError(
            f"--world-size = {size} ranks do not spread evenly over --nodes = {num_nodes}", f"--world-size {more}"
        )
    memory = size_of("--hbm", hbm) if hbm is not None else size_of("--ram", ram or "") // (size // num_nodes)

    def elsewhere(intra: float | None, inter: float | None) -> "Cluster":
        from dlrmctl.plan.cluster import described

        device = "cpu" if hbm is None else "cuda"
        return described(size, num_nodes, device, memory, intra_bandwidth=intra, inter_bandwidth=inter)

    return elsewhere


def _at_most(flag: str, number: int) -> int:
    if number > MOST_RANKS:
        raise UserError(f"{flag} = {number} must be at most {MOST_RANKS}: planning for more takes too long")
    return number
