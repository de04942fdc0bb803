"""Joins concurrent requests: one thread reads and scores what waits, as many rows at a time as allowed."""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlrmctl.serving.rows import Row, join
from dlrmctl.serving.scorer import Scorer

Answer = np.ndarray | Exception  # probabilities, or why there are none


@dataclass(frozen=True)
class _Request:
    rows: Sequence[Row]
    done: Any  # an opaque token of the caller


class Batcher:
    """Scores requests in a thread of its own.

    Args:
        scorer: the first model.
        deliver: called in the thread with the answers of a batch, each with the token of its request.
        most_rows: rows of a batch, unless one request has more.
        observe: called with the rows and the requests of each batch.

    Attributes:
        scorer: the current model. A new one may be assigned at any time: each batch is scored by one model.
    """

    def __init__(
        self,
        scorer: Scorer,
        deliver: Callable[[Sequence[tuple[Any, Answer]]], None],
        *,
        most_rows: int,
        observe: Callable[[int, int], None] = lambda rows, requests: None,
    ) -> None:
        self.scorer, self._deliver, self._most_rows, self._observe = scorer, deliver, most_rows, observe
        self._waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row], done: Any) -> None:
        """Adds a request of at least one row; `deliver` gets its answer with `done`."""
        self._waiting.put(_Request(rows, done))

    def close(self) -> None:
        """Ends the thread when all requests are answered."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            first = self._waiting.get()
            if first is None:
                return
            requests, num_rows = [first], len(first.rows)
            while num_rows < self._most_rows:
                try:
                    request = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if request is None:
                    ended = True
                    break
                requests.append(request)
                num_rows += len(request.rows)
            try:
                answers = self._answers(self.scorer, requests)
            except Exception as problem:  # a bug must not end the thread, on which every request waits
                answers = [problem for _ in requests]
            self._observe(num_rows, len(requests))
            self._deliver([(request.done, answer) for request, answer in zip(requests, answers, strict=True)])

    @staticmethod
    def _answers(scorer: Scorer, requests: Sequence[_Request]) -> list[Answer]:
        """Returns the answers of requests, all by one model."""
        try:
            inputs = scorer.read([row for request in requests for row in request.rows])
            good = list(requests)
            wrong: dict[int, Answer] = {}
        except Exception:  # a bug, too, must not reach the requests of others
            good, parts, wrong = [], [], {}
            for number, request in enumerate(requests):
                try:
                    parts.append(scorer.read(request.rows))
                    good.append(request)
                except Exception as problem:
                    wrong[number] = problem
            if not good:
                return [wrong[number] for number in range(len(requests))]
            inputs = join(parts)
        probabilities_B = scorer.probabilities(scorer.run(inputs))
        ends = np.cumsum([len(request.rows) for request in good])
        found = iter(np.split(probabilities_B, ends[:-1]))
        return [wrong[number] if number in wrong else next(found) for number in range(len(requests))]
