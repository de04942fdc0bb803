"""Options that commands share, including one for each setting."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from dlrmctl.cli import completion
from dlrmctl.settings.config import SECTIONS, Config
from dlrmctl.settings.parse import whole_number
from dlrmctl.settings.setting import default_of, flag_of, plain_type, shown
from dlrmctl.settings.typed import resolve_typed

if TYPE_CHECKING:
    from dlrmctl.rundir.directory import RunDirectory

LAUNCH_PANEL = "Launch and output"
STORE = ("path", "cache_dir", "cache_size")  # settings of where the prepared data is
CHECKPOINTS, SPLITS = ("best", "last", "step-N"), ("train", "validation", "test")
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=LAUNCH_PANEL)]
_PANELS = {
    "data": "Data",
    "model": "Model",
    "embeddings": "Embeddings",
    "optim": "Optimizers",
    "schedule": "Learning-rate schedule",
    "train": "Training loop",
    "baseline": "Baseline",
}
_WIDEST_CHOICES = 20  # characters in a line of help
# Numbers are strings here and are parsed like settings, so that error messages are the same.
Nproc = Annotated[
    str, typer.Option(help="Number of ranks to start on this machine.", metavar="N", rich_help_panel=LAUNCH_PANEL)
]


Run = Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN", autocompletion=completion.runs)]
RunOrCompressed = Annotated[
    Path,
    typer.Argument(help="Run directory or compressed model.", metavar="RUN", autocompletion=completion.runs),
]


Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="Apply the calibration that `dlrmctl calibrate` fitted.")
]


def settings_file(help: str) -> Any:
    """The option --config."""
    return typer.Option("--config", help=help, metavar="FILE.toml", rich_help_panel=LAUNCH_PANEL)


SettingsFile = Annotated[Path | None, settings_file("Read settings from this file; options override it.")]


def option(help: str, metavar: str | None = None, panel: str | None = None) -> Any:
    """An option named after its parameter; choices are given in the metavar, separated by |."""
    words = metavar.split("|") if metavar and "|" in metavar else None
    complete = completion.choices(words) if words else None
    shown = _lines_of(words) if words else metavar
    return typer.Option(help=help, metavar=shown, rich_help_panel=panel, autocompletion=complete)


def with_settings(
    only: Collection[str] = (), sections: Mapping[str, type] = SECTIONS
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds one option per setting to a command; those typed are passed as its argument `flags`, name -> string.

    Args:
        only: names of the settings to add; empty for all.
        sections: of the settings, by name.
    """
    return partial(_with_settings, only=only, sections=sections)


def _with_settings(
    command: Callable[..., None], only: Collection[str], sections: Mapping[str, type]
) -> Callable[..., None]:
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "flags"]
    options = [_parameter(section, cls, item) for section, cls in sections.items() for item in fields(cls)]
    options = [option for option in options if not only or option.name in only]

    def run(**values: Any) -> None:
        names = {option.name for option in options}
        flags = {name: value for name, value in values.items() if name in names and value is not None}
        command(**{name: value for name, value in values.items() if name not in names}, flags=flags)

    return with_parameters(run, [*own, *options], like=command)


def with_parameters(
    run: Callable[..., None], parameters: Sequence[inspect.Parameter], *, like: Callable[..., Any]
) -> Callable[..., None]:
    """Sets the parameters of `run` that Typer sees, and copies the name and help of another function."""
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__name__, run.__doc__ = like.__name__, like.__doc__
    return run


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _parameter(section: str, cls: type, item: Any) -> inspect.Parameter:
    """The option of a setting, made once for all commands."""
    hint = _hints(cls)[item.name]
    choices = item.metadata["choices"]
    is_switch = plain_type(hint) is bool
    of_type = {int: "N", float: "X", str: "DIR"}.get(plain_type(hint), "W-W-...")
    metavar = _lines_of(choices) if choices else item.metadata["metavar"] or of_type
    default = default_of(item)
    flag = flag_of(item)
    option = typer.Option(
        f"{flag}/--no-{flag.removeprefix('--')}" if is_switch else flag,
        help=item.metadata["help"] + ("" if default is None else rf" \[default: {shown(default)}]"),
        metavar=None if is_switch else metavar,
        show_default=False,
        # The column of --no-... would narrow the others of a long panel.
        rich_help_panel=LAUNCH_PANEL if is_switch else _PANELS[section],
        autocompletion=completion.choices(choices) if choices else completion.stores if flag == "--data" else None,
    )
    annotation = Annotated[bool | None, option] if is_switch else Annotated[str | None, option]
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _lines_of(choices: Sequence[str]) -> str:
    """The choices, separated by |, on lines short enough that help on a narrow terminal breaks no word."""
    lines = [choices[0]]
    for choice in choices[1:]:
        fits = len(lines[-1]) + len(choice) < _WIDEST_CHOICES
        lines[-1] += "|"
        lines = [*lines[:-1], lines[-1] + choice] if fits else [*lines, choice]
    return "\n".join(lines)


def settings_of_run(run: Path, flags: dict[str, str], *, scoring: bool = True) -> "tuple[RunDirectory, Config]":
    """Returns the directory of a run, and its settings updated by the typed flags.

    Args:
        scoring: whether a batch size that was not typed may be raised to one that is fast to score.
    """
    from dlrmctl.rundir.directory import RunDirectory

    directory = RunDirectory(run, writes=False)
    settings = resolve_typed(directory.settings(), flags, file_name=str(run / "run.toml"))
    return directory, settings.for_scoring() if scoring and "batch_size" not in flags else settings


def number_of_ranks(settings: Config, nproc: str) -> int:
    """The number of ranks to start.

    Raises:
        UserError: if it is not a number, or the batch cannot be split equally over the ranks.
    """
    ranks = whole_number("--nproc", nproc, at_least=1)
    settings.on(ranks)
    return ranks
