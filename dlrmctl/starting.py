"""What commands that work on runs share: their settings, and the ranks they start."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlrmctl.config import Config, resolve
from dlrmctl.errors import UserError
from dlrmctl.launch import launch_local, needs_launch
from dlrmctl.options import LAUNCH_PANEL, whole_number

if TYPE_CHECKING:
    from dlrmctl.rundir import RunDirectory

# Numbers arrive as text and are read by the same code as settings, so that mistakes read the same.
Nproc = Annotated[str, typer.Option(help="Ranks to start on this machine.", metavar="N", rich_help_panel=LAUNCH_PANEL)]


def settings_of_run(run: Path, flags: dict[str, str]) -> "tuple[RunDirectory, Config]":
    """A run's directory, and its settings with the typed ones over them."""
    from dlrmctl.rundir import RunDirectory

    directory = RunDirectory(run, writes=False)
    return directory, resolve(directory.settings(), flags, file_name=str(run / "run.toml"))


def launch_or_go_on(settings: Config, nproc: str) -> None:
    """Starts `nproc` ranks of this command and leaves with their status, unless this process is one of them."""
    ranks_here = whole_number("--nproc", nproc, at_least=1)
    check_batch(settings, ranks_here)
    if needs_launch(ranks_here):
        raise typer.Exit(launch_local(ranks_here, sys.argv[1:]))


def check_batch(settings: Config, world_size: int) -> None:
    """Raises:
    UserError: if the batch cannot be cut into equal parts.
    """
    size = settings.train.batch_size
    if size % world_size:
        raise UserError(
            f"train.batch_size = {size} cannot be cut into {world_size} equal parts, one per rank",
            f"--batch-size {size + -size % world_size}",
        )
