"""The command `dlrmctl tune`."""

from pathlib import Path
from typing import Annotated

import typer

from dlrmctl.cli.options import AsJson, Nproc, option, settings_file, with_settings
from dlrmctl.console.console import output, print_json
from dlrmctl.errors import UserError
from dlrmctl.rundir.seeds import MOST_SEEDS
from dlrmctl.settings.config import resolve
from dlrmctl.settings.parse import one_of, whole_number
from dlrmctl.settings.setting import coerce
from dlrmctl.settings.toml import read_settings, read_toml

PRUNERS = ("median", "asha", "none")
_TRIALS = 30
_SEARCH = "Search"


@with_settings()
def tune(
    study: Annotated[
        Path | None,
        option("Directory of the study; an existing one is continued. Default: studies/NAME.", "DIR", _SEARCH),
    ] = None,
    space: Annotated[
        Path | None, option("Settings to search. Default: see --show-space.", "FILE.toml", _SEARCH)
    ] = None,
    show_space: Annotated[
        bool, typer.Option("--show-space", help="Print the default search space and exit.", rich_help_panel=_SEARCH)
    ] = False,
    trials: Annotated[
        str | None,
        option(f"Number of trials of the study. Default: {_TRIALS}, or no limit with --minutes.", "N", _SEARCH),
    ] = None,
    minutes: Annotated[str | None, option("Begin no trial after this many minutes.", "X", _SEARCH)] = None,
    pruner: Annotated[
        str, option("How to end bad trials early, by their evaluations.", "|".join(PRUNERS), _SEARCH)
    ] = "median",
    storage: Annotated[
        str | None,
        option(
            "Where Optuna keeps the trials: a URL, or journal for a file on a shared disk. Default: SQLite in the "
            "directory.",
            "URL",
            _SEARCH,
        ),
    ] = None,
    seeds: Annotated[
        str, option("Number of new seeds that compare best and default at the end; 0 omits it.", "N", _SEARCH)
    ] = "3",
    plot: Annotated[
        Path | None, option("Draw trials and importances to this file, .png or .svg.", "FILE", _SEARCH)
    ] = None,
    config: Annotated[
        Path | None, settings_file("Read the default settings from this file; options override it.")
    ] = None,
    nproc: Nproc = "1",
    json: AsJson = False,
    *,
    flags: dict[str, str],
) -> None:
    """Search for better settings on the validation split, and test the best ones once.

    The first trial has the default settings, or those given by options and --config. The same command continues a
    study, and may run several times at once.

    \b
    dlrmctl tune --data DIR
    dlrmctl tune --data DIR --trials 100 --pruner asha --plot study.png
    """
    from dlrmctl.tuning.space import DEFAULT_SPACE, SearchSpace

    if show_space:
        output.print(DEFAULT_SPACE.strip())
        return
    from dlrmctl.tuning.study import require_optuna

    require_optuna()
    pruner = one_of("--pruner", pruner, PRUNERS)
    most = None if trials is None else whole_number("--trials", trials, at_least=1)
    limit = None if minutes is None else coerce(minutes, float, "--minutes")
    if limit is not None and limit <= 0:
        raise UserError(f"--minutes = {minutes} must be above 0")
    number = whole_number("--seeds", seeds, at_least=0, at_most=MOST_SEEDS)
    ranks = whole_number("--nproc", nproc, at_least=1)
    settings = resolve({} if config is None else read_settings(config), flags, file_name=str(config))
    given = None if space is None else SearchSpace.of(read_toml(space), str(space))
    from dlrmctl.tuning.tune import Search, show_tuning
    from dlrmctl.tuning.tune import tune as run

    search = Search(most or (None if limit else _TRIALS), limit, pruner, storage, number, plot, ranks)
    result = run(settings, given, study, search, fixed=flags)
    print_json(result) if json else show_tuning(result)
