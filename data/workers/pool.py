"""Runs work in threads, with results in order, so that the number of threads affects only the speed."""

import os
import pickle
import secrets
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar

from dlrmctl.data.errors import DataError, system_error

_Result = TypeVar("_Result")
_MOST_KEPT = 4  # objects that a process keeps for later calls


class WorkersLost(DataError):
    """Raised if workers ended before their work was done; the same preparation can continue."""


class Workers:
    """A pool of threads.

    Args:
        number: number of threads; None means one per core that this process may use.

    Attributes:
        apart: whether calls run in other processes: then they and their results must be small, or be in files.
    """

    apart = False

    def __init__(self, number: int | None = None) -> None:
        self.number = number or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self.number, thread_name_prefix="prepare")
        self._stopping = False

    def submit(self, call: Callable[[], _Result]) -> "Future[_Result]":
        """Starts one call."""
        self._stopping = False
        return self._pool.submit(partial(self._run, call))

    def _run(self, call: Callable[[], Any]) -> Any:
        """Returns the result of a call, in a thread of the pool."""
        return call()

    def submit_here(self, call: Callable[[], _Result]) -> "Future[_Result]":
        """Starts one call in a thread of this process."""
        return self._pool.submit(call)

    def in_order(self, calls: Iterable[Callable[[], _Result]], *, ahead: int | None = None) -> Iterator[_Result]:
        """Yields the results of the calls in order.

        Args:
            calls: the calls.
            ahead: how many calls are started before the first result is needed; None means one per worker.

        Raises:
            The error of a call, in its turn; later calls are dropped.
        """
        started: deque[Future[_Result]] = deque()
        try:
            for call in calls:
                started.append(self.submit(call))
                if len(started) > (self.number if ahead is None else ahead):
                    yield started.popleft().result()
            while started:
                yield started.popleft().result()
        finally:
            for future in started:
                future.cancel()
            if not all(future.done() for future in started):
                self._stop()
            wait(started)

    def _stop(self) -> None:
        """Ends running calls, where that is possible: not in threads."""
        self._stopping = True

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            self._stop()
        self._pool.shutdown(cancel_futures=True)


class Alone(Workers):
    """Runs calls at once, for tasks that are themselves in a worker."""

    def __init__(self) -> None:
        self.number = 1

    def in_order(self, calls: Iterable[Callable[[], _Result]], *, ahead: int | None = None) -> Iterator[_Result]:
        for call in calls:
            yield call()


class Shared(Generic[_Result]):
    """An object that many calls need: packed once here, and unpacked once in each worker process."""

    _kept: ClassVar[OrderedDict[str, Any]] = OrderedDict()

    def __init__(self, value: _Result) -> None:
        self._name, self._content = secrets.token_hex(8), b""
        self._value: _Result | None = value

    def __getstate__(self) -> dict[str, Any]:
        self._content = self._content or pickle.dumps(self._value)
        return {"_name": self._name, "_content": self._content, "_value": None}

    def get(self) -> _Result:
        """Returns the object, the same in later calls: do not change it."""
        value = self._kept.get(self._name) if self._value is None else self._value
        if value is None:
            self._kept[self._name] = value = pickle.loads(self._content)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        found: _Result = value
        return found


def run_packed(content: bytes) -> bytes:
    """Runs a packed call; returns its packed result, or error and the system error that caused it."""
    try:
        return pickle.dumps((pickle.loads(content)(), None, None))
    except Exception as error:
        cause = system_error(error)
        system = None if cause is None else OSError(cause.errno, cause.strerror)
        if not isinstance(error, DataError):
            error.add_note(traceback.format_exc())
        try:
            packed = pickle.dumps((None, error, system))
            pickle.loads(packed)
        except Exception:  # errors of other packages may need more arguments than they keep
            packed = pickle.dumps((None, RuntimeError(traceback.format_exc()), system))
        return packed


def unpacked(content: bytes) -> Any:
    """Returns the result in what `run_packed` returned, or raises its error."""
    result, error, system = pickle.loads(content)
    if error is not None:
        raise error from system
    return result
