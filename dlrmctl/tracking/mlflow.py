"""MLflow: a run on the server that MLFLOW_TRACKING_URI names, or in the files that MLflow chooses without it."""

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dlrmctl.console.console import warn
from dlrmctl.console.text import last_line
from dlrmctl.errors import UserError
from dlrmctl.tracking.tracker import PROJECT, TrackedRun, scalars

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MOST_PARAMETERS = 100  # of one request
_MOST_METRICS = 1000
_SECONDS_TO_END = 60.0  # for what is left to send
_RETRIES, _SECONDS = "2", "10"  # of a request; MLflow would try for minutes


def _client() -> "MlflowClient":
    """A client alone, since `mlflow.start_run` would also send the user, the program and the Git commit."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _RETRIES)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", _SECONDS)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # what fails is reported once, at the end
    try:
        from mlflow import MlflowClient
    except ImportError:
        raise UserError("MLflow is not installed", 'pip install "dlrmctl[mlflow]"') from None
    with _refusals():
        return MlflowClient()


@contextmanager
def _refusals() -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError, ImportError) as problem:
        where = os.environ.get("MLFLOW_TRACKING_URI", "local files")
        system = re.search(r"\[Errno \d+\] ([\w ]+)", str(problem))
        reason = system[1].lower() if system else last_line(problem)
        raise UserError(f"MLflow at {where} does not answer: {reason}", "check MLFLOW_TRACKING_URI") from None


class MlflowTracker:
    """Sends numbers in the background; if that fails, the training goes on, and says so.

    Raises:
        UserError: if MLflow is not installed or cannot be reached.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._client = _client()
        from mlflow.entities import Metric, Param

        self._metric, self._run = Metric, run
        with _refusals():
            self.identity = run.known_as or self._new_run()
            self._client.update_run(self.identity, status="RUNNING")
            if run.known_as is None:
                parameters = [Param(name, str(value)) for name, value in run.settings.items()]
                for start in range(0, len(parameters), _MOST_PARAMETERS):
                    self._client.log_batch(self.identity, params=parameters[start : start + _MOST_PARAMETERS])
        self._waiting: queue.Queue[list[Any] | None] = queue.Queue()
        self._problem: Exception | None = None
        self._finished = False
        self._sender = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._sender.start()

    @staticmethod
    def check() -> None:
        """Checks that MLflow is installed and answers.

        Raises:
            UserError: if not.
        """
        with _refusals():
            _client().search_experiments(max_results=1)

    def _new_run(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        created: str = self._client.create_run(number, run_name=self._run.path.name).info.run_id
        return created

    def record(self, entry: Mapping[str, Any]) -> None:
        now, step = int(time.time() * 1000), entry["step"]
        self._waiting.put([self._metric(name, value, now, step) for name, value in scalars(entry).items()])

    def finish(self, summary: Mapping[str, float]) -> None:
        now, step = int(time.time() * 1000), int(summary["steps"])
        self._waiting.put([self._metric(name, value, now, step) for name, value in summary.items()])
        self._finished = True

    def close(self, *, failed: bool) -> None:
        self._waiting.put(None)
        self._sender.join(_SECONDS_TO_END)
        problem: Exception | str | None = "it takes too long" if self._sender.is_alive() else self._problem
        if problem is None:
            try:
                for file in self._run.files:
                    self._client.log_artifact(self.identity, str(file))
                status = "FINISHED" if self._finished else "FAILED" if failed else "KILLED"
                self._client.set_terminated(self.identity, status)
            except Exception as error:  # of any library below MLflow
                problem = error
        if problem is not None:
            reason = problem if isinstance(problem, str) else last_line(problem)
            warn(f"MLflow did not get everything: {reason}; {self._run.path / 'metrics.jsonl'} has all of it")

    def _send(self) -> None:
        """Sends what is waiting, together, until there is None; after a failure it only takes."""
        ended = False
        while not ended:
            together = self._waiting.get()
            while together is not None and len(together) < _MOST_METRICS // 2:
                try:
                    more = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ended = True
                    break
                together += more
            if together is None:
                return
            if self._problem is None:
                try:
                    self._client.log_batch(self.identity, metrics=together)
                except Exception as problem:  # of any library below MLflow
                    self._problem = problem
