"""Runs a command; errors end here as one line each, shown once over all ranks."""

import sys
import traceback
from typing import Any

import typer

from dlrmctl.cli.app import app
from dlrmctl.console.console import say, show_error
from dlrmctl.data.errors import DataError
from dlrmctl.errors import EXIT_USER_ERROR, Interrupted, UserError
from dlrmctl.ranks.launch import RankEnded, RankError, claim_report
from dlrmctl.ranks.process import configure


def main() -> None:
    """Entry point: every mistake a user can mend is one line and exit status 2."""
    sys.exit(run_command())


def run_command(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit status.

    Args:
        arguments: what follows `dlrmctl`; None takes the command line.
    """
    configure()
    try:
        status: Any = app(arguments, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except RankEnded as error:
        _report(error.message, error.hint)
        return error.exit_status
    except (UserError, DataError) as error:
        return _report(error.message, error.hint)
    except typer.TyperException as error:
        if not error.format_message():  # a group of commands without a command: its help was shown
            return EXIT_USER_ERROR
        return _report(error.format_message(), f"{_command_path(error)} --help")
    except Interrupted as interruption:
        return interruption.exit_status
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except RankError as error:
        say(str(error))
        return 1
    except Exception:
        if claim_report():
            say(traceback.format_exc())
        return 1


def _command_path(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "dlrmctl"


def _report(message: str, hint: str | None) -> int:
    if claim_report():
        show_error(message, hint)
    return EXIT_USER_ERROR
