"""The main program of a worker process: runs packed calls from standard input until it ends.

It ends with its parent, also if that is killed.
"""

import ctypes
import os
import signal
import sys

from dlrmctl.data.workers.pool import run_packed

SIZE_BYTES = 8
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main(parent: int) -> None:
    """Runs calls, each after its size, and writes their results likewise.

    Args:
        parent: the process that started this one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to end
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        return
    os.putenv("POLARS_MAX_THREADS", "1")  # before polars is loaded: each core has its process
    with open(0, "rb", closefd=False) as calls, os.fdopen(os.dup(1), "wb") as results:
        os.dup2(2, 1)  # whatever a library prints is not a result
        while size := int.from_bytes(calls.read(SIZE_BYTES), "little"):
            content = calls.read(size)
            if len(content) < size:
                return
            result = run_packed(content)
            results.write(len(result).to_bytes(SIZE_BYTES, "little"))
            results.write(result)
            results.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
