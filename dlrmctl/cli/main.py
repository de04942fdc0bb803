"""Entry point: runs a command and reports errors as one line, once over all ranks.

Imports are few until Ctrl-C is handled.
"""

import errno
import io
import os
import signal
import sys
from typing import Any

from dlrmctl.errors import EXIT_USER_ERROR, Interrupted, UserError
from dlrmctl.ranks.signals import patient_interrupts

# Errors of a write to a stream; code that writes files reports its own errors.
_OUTPUT_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)


def main() -> None:
    """Entry point; a mistake that the user can fix is reported as one line, with exit status 2."""
    try:
        patient_interrupts()
        status = _run_with_streams()
    except KeyboardInterrupt:
        status = 130
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to clean up
    sys.exit(status)


def _run_with_streams() -> int:
    """Runs the command; the standard streams may be closed or have any encoding."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    if sys.stdout is None:
        return _report("standard output is closed", "redirect it, for example to /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack characters
    status = run_command()
    try:
        sys.stdout.flush()
    except OSError as problem:
        status = _refused_output(problem)
    return status


def run_command(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit status.

    Args:
        arguments: the words after `dlrmctl`; None takes those of the process.
    """
    import traceback

    import typer

    from dlrmctl.cli.app import application, whole_application
    from dlrmctl.cli.mistakes import refuse_urls, unknown_option
    from dlrmctl.console.console import end_notice, say
    from dlrmctl.data.errors import DataError
    from dlrmctl.data.files import scratch_error
    from dlrmctl.ranks.launch import RankEnded, RankError, claim_report
    from dlrmctl.ranks.process import configure

    configure()
    try:
        words = sys.argv[1:] if arguments is None else arguments
        refuse_urls(words)
        status: Any = application(words)(arguments, prog_name="dlrmctl", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except RankEnded as error:
        _report(error.message, error.hint)
        return error.exit_status
    except (UserError, DataError) as error:
        return _report(error.message, error.hint)
    except typer.TyperException as error:
        if not error.format_message():  # a group without a command: its help was printed
            return EXIT_USER_ERROR
        if (context := getattr(error, "ctx", None)) and hasattr(error, "possibilities"):  # Typer hides the class
            unknown = unknown_option(
                getattr(error, "option_name", ""), context, typer.main.get_command(whole_application())
            )
            return _report(unknown.message, unknown.hint)
        return _report(error.format_message(), f"{_command_path(error)} --help")
    except Interrupted as interruption:
        return interruption.exit_status
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except RankError as error:
        say(str(error))
        return 1
    except Exception as problem:
        if isinstance(problem, OSError) and problem.filename is None and problem.errno in _OUTPUT_ERRORS:
            return _refused_output(problem)
        if no_scratch := scratch_error(problem):
            return _report(no_scratch.message, no_scratch.hint)
        if claim_report():
            say(traceback.format_exc())
        return 1
    finally:
        end_notice()


def _refused_output(problem: OSError) -> int:
    """Reports that standard output cannot be written, unless its reader has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise the interpreter would try again at exit and fail
    if problem.errno == errno.EPIPE:
        return 1  # as rich does
    return _report(f"standard output cannot be written: {problem.strerror}", None)


def _command_path(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "dlrmctl"


def _report(message: str, hint: str | None) -> int:
    from dlrmctl.console.console import show_error
    from dlrmctl.ranks.launch import claim_report

    if claim_report():
        show_error(message, hint)
    return EXIT_USER_ERROR
