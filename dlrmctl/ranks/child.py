"""`python -m dlrmctl.ranks.child DIRECTORY`: a rank that `launch` starts; not for users."""

import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from dlrmctl.console.console import end_notice
from dlrmctl.data.errors import DataError
from dlrmctl.errors import EXIT_USER_ERROR, Interrupted, UserError
from dlrmctl.ranks.launch import RESULT, WORK, claim_report, imported, is_main
from dlrmctl.ranks.process import configure
from dlrmctl.ranks.signals import patient_interrupts


def main(place: Path) -> int:
    """Does the work of a launch; writes the result of rank 0, or the first error, to its directory.

    Returns:
        The exit status: 2 for an error that the user can fix, 1 for another, 128 + N after signal N.
    """
    work = json.loads((place / WORK).read_text())
    _end_with(work["launcher"])
    patient_interrupts()
    configure()
    try:
        result = imported(work["function"])(**work["arguments"])
        if is_main():
            (place / RESULT).write_text(json.dumps(result, default=str))
        return 0
    except (UserError, DataError) as error:
        kind = "data" if isinstance(error, DataError) else "user"
        claim_report(json.dumps({"kind": kind, "message": error.message, "hint": error.hint}))
        return EXIT_USER_ERROR
    except Interrupted as interruption:
        return interruption.exit_status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:
        claim_report(json.dumps({"kind": "bug", "message": traceback.format_exc()}))
        return 1
    finally:
        end_notice()


def _end_with(launcher: int) -> None:
    """Lets the kernel end this rank when the launcher ends for any reason.

    SIGTERM is handled in Python, which does not run while the rank waits in a collective.
    """
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it ended before that
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
