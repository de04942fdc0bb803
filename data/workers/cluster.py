"""Runs calls on the workers of an existing Dask scheduler: each thread of the pool waits for one call there."""

import asyncio
import os
import pickle
import platform
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.workers.pool import Workers, WorkersLost, run_packed, unpacked

_CONNECT_SECONDS = 10
_POLL_SECONDS = 1.0
_MOST_SUBMITS = 3  # of a task that the scheduler has forgotten
_MOST_AT_ONCE = 256  # calls
_SAME = ("dlrmctl", "numpy", "polars", "distributed")


class ClusterWorkers(Workers):
    """The workers of a Dask cluster. A call whose worker is lost runs again on another one.

    Args:
        address: of the scheduler, such as "tcp://host:8786".

    Raises:
        DataError: if `distributed` is missing, the scheduler does not answer, or it has no workers or other versions.
    """

    apart = True

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client, Security
            from distributed.comm import get_address_host_port
        except ImportError:
            raise DataError("a cluster needs the package distributed", 'pip install "dlrmctl[cluster]"') from None
        try:
            get_address_host_port(address, strict=True)  # a client of a wrong address waits for its own end
            if address.startswith("tls:") and Security().get_connection_args("client")["ssl_context"] is None:
                raise ValueError("the settings of Dask, distributed.comm.tls, name no certificates")
            self._client: Any = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if isinstance(error, ValueError) else "no answer"
            raise DataError(
                f"{address}: cannot connect to the scheduler: {reason}",
                "start one with `dask scheduler`, and give the address that it prints",
            ) from None
        self._address, self._running = address, set[Any]()
        try:
            threads = self._client.nthreads()
            if not threads:
                raise DataError(f"{address}: the scheduler has no workers", f"start some with `dask worker {address}`")
            self._check_versions()
        except BaseException:
            self._client.close()
            raise
        super().__init__(min(2 * sum(threads.values()), _MOST_AT_ONCE))

    def _check_versions(self) -> None:
        ours = _versions()
        for worker, theirs in self._client.run(_packed_versions).items():
            for name, found in pickle.loads(theirs).items():
                if found != ours[name]:
                    raise DataError(
                        f"worker {worker} has {name} {found}, this machine has {ours[name]}",
                        "install the same versions everywhere",
                    )

    def check_files(self, paths: Iterable[Path]) -> None:
        """Checks that all workers see these files and directories.

        Raises:
            DataError: naming the first that a worker does not see.
        """
        for path in paths:
            for worker, exists in self._client.run(os.path.exists, str(path)).items():
                if not exists:
                    raise DataError(
                        f"worker {worker} does not see {path}",
                        "sources and store must be on a file system that all workers share, under the same path",
                    )

    def _run(self, call: Callable[[], Any]) -> Any:
        from distributed import KilledWorker

        work = pickle.dumps(call)
        for _ in range(_MOST_SUBMITS):
            try:
                content = self._content_of(work)
            except KilledWorker:
                raise WorkersLost(
                    f"{self._address}: workers were killed again and again at the same task, maybe for lack of memory",
                    "give them more memory, or fewer threads each",
                ) from None
            except (CancelledError, asyncio.CancelledError, OSError, RuntimeError, UnboundLocalError) as error:
                if self._stopping:
                    raise CancelledError from None
                # A scheduler forgets the tasks of a client whose connection was interrupted. `distributed` raises the
                # last of these, or that of asyncio, if that happens while a result is awaited.
                if isinstance(error, OSError) or self._client.status != "running":
                    break
                if isinstance(error, RuntimeError):
                    raise
            else:
                return unpacked(content)
        raise WorkersLost(f"{self._address}: the scheduler was lost", "start it again, with its workers")

    def _content_of(self, work: bytes) -> bytes:
        """Submits a call and returns its packed result or error.

        Raises:
            RuntimeError: if the connection is lost meanwhile; besides, what `distributed` raises.
        """
        if self._stopping:
            raise CancelledError
        future = self._client.submit(run_packed, work, pure=False)
        self._running.add(future)
        while True:
            try:
                content: bytes = future.result(timeout=_POLL_SECONDS)
                return content
            except TimeoutError:
                if self._stopping:
                    raise CancelledError from None
                if self._client.status != "running":
                    raise RuntimeError("the connection is lost") from None
            finally:
                if future.done():
                    self._running.discard(future)

    def _stop(self) -> None:
        super()._stop()
        if self._client.status == "running":
            self._client.cancel(list(self._running), asynchronous=False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        super().__exit__(kind, error, _)
        self._client.close(timeout=_POLL_SECONDS)


def _versions() -> dict[str, str]:
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in _SAME:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _packed_versions() -> bytes:
    return pickle.dumps(_versions())
