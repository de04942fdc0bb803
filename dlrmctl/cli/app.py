"""The command line application, with all commands or only the one that is typed, so that it starts fast.

Commands import their workers when they run.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from inspect import cleandoc
from typing import Annotated, Any

import typer

from dlrmctl.cli.mistakes import Commands, show_version

_DATA, _TRAINING, _AFTERWARDS, _MACHINE = "Data", "Training", "Trained models", "This machine"


@dataclass(frozen=True)
class _Command:
    """A command, or a group of commands, of the module `dlrmctl.cli.<module>`."""

    module: str
    panel: str
    is_group: bool = False
    shows_help: bool = False  # without arguments


_COMMANDS = {
    "prepare": _Command("data", _DATA, shows_help=True),
    "data": _Command("data", _DATA, is_group=True),
    "train": _Command("train", _TRAINING),
    "daily": _Command("train", _TRAINING),
    "tune": _Command("tune", _TRAINING),
    "baseline": _Command("baseline", _TRAINING),
    "runs": _Command("tools", _TRAINING),
    "plot": _Command("tools", _TRAINING),
    "plan": _Command("plan", _TRAINING),
    "evaluate": _Command("score", _AFTERWARDS),
    "compare": _Command("score", _AFTERWARDS),
    "calibrate": _Command("score", _AFTERWARDS),
    "predict": _Command("score", _AFTERWARDS),
    "compress-embeddings": _Command("compress", _AFTERWARDS),
    "export": _Command("export", _AFTERWARDS),
    "serve": _Command("serve", _AFTERWARDS, shows_help=True),
    "doctor": _Command("tools", _MACHINE),
    "bench": _Command("bench", _MACHINE, is_group=True),
}


def application(words: Sequence[str]) -> typer.Typer:
    """Returns the application for a command line; for completion, help and mistakes that is the whole one.

    Args:
        words: those after `dlrmctl`.
    """
    completing = any(name.startswith("_DLRMCTL") for name in os.environ)
    return _with_commands(words[0]) if words and words[0] in _COMMANDS and not completing else whole_application()


@cache
def whole_application() -> typer.Typer:
    """Returns the application with all commands."""
    return _with_commands(*_COMMANDS)


def _with_commands(*names: str) -> typer.Typer:
    app = typer.Typer(
        name="dlrmctl",
        cls=Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(dlrmctl)
    for name in names:
        command = _COMMANDS[name]
        module: Any = import_module(f"dlrmctl.cli.{command.module}")
        if command.is_group:
            app.add_typer(getattr(module, f"{name}_app"), name=name, cls=Commands, rich_help_panel=command.panel)
        else:
            function = getattr(module, name.replace("-", "_"))
            register = app.command(
                name, help=_joined(function.__doc__), no_args_is_help=command.shows_help, rich_help_panel=command.panel
            )
            register(function)
    return app


def _joined(text: str) -> str:
    """A help text with a line for each paragraph, which wraps at any width, but for those that begin with a \\b."""
    paragraphs = cleandoc(text).split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else " ".join(part.split("\n")) for part in paragraphs)


def dlrmctl(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Train DLRM recommendation models with compositional embeddings, sharded tables and distributed Shampoo.

    \b
    dlrmctl train --dataset synthetic         train on generated data; needs no files
    dlrmctl prepare criteo train.txt -o DIR   prepare Criteo's files, or your own with --schema
    dlrmctl train --data DIR                  train on prepared data
    dlrmctl COMMAND -h                        show the options of a command

    Run `dlrmctl --install-completion` once to complete commands, options, choices and run directories in new shells.
    """
