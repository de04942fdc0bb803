"""Errors and hints for unknown commands and options, and for URLs in place of paths; and `--version`."""

from collections.abc import Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import refuse_url
from dlrmctl.data.remote.urls import is_remote, refuse_web
from dlrmctl.errors import UserError
from dlrmctl.settings.synonyms import names_meant, nearest

# Options and commands by what they take.
_OF_SERVICES = ("--storage", "--scheduler")
_OUTPUTS, _STORES = ("-o", "--out"), ("--vocabulary-from", "--extend", "--data", "--finetune-data")
_RUNS = ("--resume", "--run-dir", "--init-from", "--study")
_OF_RUNS = ("runs", "plot", "evaluate", "compare", "calibrate", "predict", "compress-embeddings", "export")
_LOCAL = (*_RUNS, "--schema", "--config")
_WRITTEN = (*_OUTPUTS, "--plot")
_MOUNT = "give a directory on this machine, or on a disk that is mounted here"
_COMMANDS = {
    "benchmark": "bench",
    "check": "doctor",
    "compress": "compress-embeddings",
    "convert": "prepare",
    "eval": "evaluate",
    "fit": "train",
    "generate": "data synthesize",
    "import": "prepare",
    "infer": "predict",
    "inspect": "data show",
    "list": "runs",
    "ls": "runs",
    "preprocess": "prepare",
    "resume": "train --resume RUN",
    "save": "export",
    "score": "predict",
    "search": "tune",
    "serve": "export",
    "test": "evaluate",
    "validate": "evaluate",
    "version": "--version",
}


class Commands(TyperGroup):
    """A group of commands that suggests a command for an unknown one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            meant = _command_meant(name, ctx.find_root().command)
            if name == "help":
                meant = " ".join([*args[1:], "--help"])
            hint = f"did you mean `dlrmctl {meant}`?" if meant else f"{ctx.command_path} --help lists the commands"
            raise UserError(f"no such command: {ctx.command_path} {name}", hint)
        return super().resolve_command(ctx, args)


def _command_meant(name: str, root: Any) -> str | None:
    paths = [" ".join(path) for path, _ in walk(root)]
    plain = name.lower().replace("_", "-")
    by_last = {path.split()[-1]: path for path in reversed(paths)}
    close = by_last.get(plain) or _COMMANDS.get(plain)
    if close is None and (near := nearest(name, list(by_last))):
        close = by_last[near]
    return close


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields all commands and groups below a group with their paths."""
    for name, inner in getattr(command, "commands", {}).items():
        yield (*path, name), inner
        yield from walk(inner, (*path, name))


def refuse_urls(arguments: Sequence[str]) -> None:
    """Refuses arguments that are URLs where only this machine is meant.

    Raises:
        DataError: if an argument, or the value after `=`, is such a URL.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag, _, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
        if flag in _OF_SERVICES:
            continue
        if is_remote(value) and _takes_urls(arguments[0], flag):
            if flag in _OUTPUTS:
                refuse_web(value)
            continue
        is_word = not flag.startswith("-")
        if is_remote(value) and (flag in _RUNS or (is_word and arguments[0] in _OF_RUNS)):
            raise DataError(f"{value}: runs are kept on a file system, which can lock and rename", _MOUNT)
        refuse_url(value, writes=flag in _WRITTEN)


def _takes_urls(command: str, flag: str) -> bool:
    """Whether a command reads or writes files on other machines.

    Args:
        flag: before the URL; or the word before it.
    """
    if (flag in _STORES and command != "bench") or (command == "data" and flag == "show"):
        return True
    if command == "predict":
        return flag not in ("predict", *_LOCAL)
    return command == "prepare" and flag not in (*_STORES, *_LOCAL)


def unknown_option(option: str, context: Any, root: Any) -> UserError:
    """The error for an unknown option.

    Args:
        option: as typed, `--lr`.
        context: of the command.
        root: the group of all commands.
    """
    command = context.command
    flags = _flags(command)
    found = names_meant(option.lstrip("-"), flags)
    if found:
        hint = f"did you mean {_either([_typed(words, flags) for words in found])}?"
    elif others := [path for path, other in walk(root) if option in _flags(other).values()]:
        hint = f"it is an option of {_either([' '.join(('dlrmctl', *path)) for path in others[:3]])}"
    else:
        hint = f"{context.command_path} --help lists the options"
    return UserError(f"no such option: {option}", hint)


def _flags(command: Any) -> dict[str, str]:
    """The options of a command, by the names of their flags and settings."""
    flags = {}
    for parameter in command.params:
        for flag in parameter.opts if parameter.param_type_name == "option" else ():
            flags[flag.lstrip("-").replace("-", "_")] = flag
        if parameter.param_type_name == "option":
            flags.setdefault(parameter.name, parameter.opts[0])
    return flags


def _typed(words: str, flags: dict[str, str]) -> str:
    name, _, value = words.partition(" ")
    return f"{flags[name]} {value}".strip()


def _either(words: Sequence[str]) -> str:
    several = list(dict.fromkeys(words))
    return several[0] if len(several) == 1 else f"{', '.join(several[:-1])} or {several[-1]}"


def show_version(shown: bool) -> None:
    """Prints the version and exits, if `shown`."""
    if not shown:
        return
    import importlib.metadata

    from dlrmctl.console.console import output

    try:
        version = importlib.metadata.version("dlrmctl")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    output.print(f"dlrmctl {version}")
    raise typer.Exit
