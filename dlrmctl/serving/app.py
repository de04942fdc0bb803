"""The HTTP interface of a bundle: requests in JSON or Arrow, answers, limits, and metrics.

POST /score    rows -> probabilities       GET /health, /schema, /metrics
POST /reload   loads the file again; from this machine only
"""

import asyncio
import contextlib
import io
import ipaddress
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from dlrmctl.console.console import say, warn
from dlrmctl.serving.batching import Answer, Batcher
from dlrmctl.serving.errors import BundleError, RowError
from dlrmctl.serving.scorer import Scorer
from dlrmctl.serving.values import JsonNumber

ARROW = "application/vnd.apache.arrow.stream"
_JSON = ("application/json", "application/x-www-form-urlencoded", "")  # curl says the second of any body
_DECODER = json.JSONDecoder(parse_int=JsonNumber, parse_float=JsonNumber, parse_constant=JsonNumber)
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class RequestLimits:
    """What a server accepts.

    Attributes:
        rows: of a request.
        bytes: of the body of a request.
        waiting: requests that wait for their scores; more are refused.
        batch_rows: rows that are scored together.
    """

    rows: int = 4096
    bytes: int = 16 << 20
    waiting: int = 1024
    batch_rows: int = 1024


class Refused(Exception):
    """Raised for a request that gets no scores.

    Attributes:
        status: of the answer.
        content: of the answer.
        headers: of the answer.
    """

    def __init__(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        super().__init__(content["error"])
        self.status, self.content, self.headers = status, content, headers


class Service:
    """A model that answers requests.

    Args:
        path: the bundle.
        limits: what is accepted.
        compiled: whether to run the native code of the bundle.

    Raises:
        BundleError: if the bundle cannot be used.
    """

    def __init__(self, path: Path, limits: RequestLimits, *, compiled: bool = False) -> None:
        self.path, self.limits, self._compiled = path, limits, compiled
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._answered = Counter(
            "dlrmctl_requests", "Requests to /score by status.", ["status"], registry=self.registry
        )
        self._rows = Counter("dlrmctl_rows", "Rows that were scored.", registry=self.registry)
        self._seconds = Histogram(
            "dlrmctl_request_seconds", "Time of a request to /score.", buckets=_SECONDS, registry=self.registry
        )
        self._batches = Histogram(
            "dlrmctl_batch_rows", "Rows that are scored together.", buckets=_ROWS, registry=self.registry
        )
        self._reloads = Counter(
            "dlrmctl_reloads", "Models loaded again, by outcome.", ["outcome"], registry=self.registry
        )
        self._loaded = Gauge("dlrmctl_model_loaded_seconds", "When the model was loaded.", registry=self.registry)
        Gauge("dlrmctl_requests_waiting", "Requests that wait.", registry=self.registry).set_function(
            lambda: float(self._waiting)
        )
        self._waiting = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batcher = Batcher(
            Scorer(path, compiled=compiled),
            self._deliver,
            most_rows=limits.batch_rows,
            observe=lambda rows, _: self._batches.observe(rows),
        )
        self._loaded.set_to_current_time()
        self._since = time.time()
        self._reloading = threading.Lock()

    @property
    def scorer(self) -> Scorer:
        """The current model."""
        return self._batcher.scorer

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Takes requests of this loop."""
        self._loop = loop

    def close(self) -> None:
        """Ends when all requests are answered."""
        self._batcher.close()

    def reload(self) -> None:
        """Loads the file again; the earlier model answers until the new one is ready.

        Raises:
            BundleError: if the file cannot be used; the earlier model remains.
        """
        with self._reloading:
            try:
                scorer = Scorer(self.path, compiled=self._compiled)
                if missing := [column for column in scorer.columns if column not in self.scorer.columns]:
                    say(f"{self.path}: the new model has the column {missing[0]!r}, which the earlier one did not have")
                self._batcher.scorer = scorer
            except BundleError:
                self._reloads.labels("failed").inc()
                raise
            self._reloads.labels("loaded").inc()
            self._loaded.set_to_current_time()
            self._since = time.time()

    async def score(self, request: Request) -> Response:
        """Answers a request for scores."""
        begin = time.perf_counter()
        try:
            rows = _rows(await self._body(request), request.headers.get("content-type", ""), self.limits.rows)
            probabilities = await self._probabilities(rows)
            answer = _answer(probabilities, request.headers.get("accept", ""))
            self._rows.inc(len(rows))
        except Refused as refused:
            answer = JSONResponse(refused.content, refused.status, refused.headers)
        self._answered.labels(str(answer.status_code)).inc()
        self._seconds.observe(time.perf_counter() - begin)
        return answer

    def health(self) -> dict[str, Any]:
        """Returns the state, as plain values for JSON."""
        about = self.scorer.about
        model = {key: about[key] for key in ("run", "checkpoint", "precision")}
        return {"status": "ok", "model": {"file": str(self.path), **model}, "loaded": self._since}

    async def _body(self, request: Request) -> bytes:
        too_large = Refused(413, {"error": f"the body is larger than {self.limits.bytes:,} bytes"})
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.bytes:
            raise too_large
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.limits.bytes:
                raise too_large
        return bytes(body)

    async def _probabilities(self, rows: Sequence[Any]) -> np.ndarray:
        if not rows:
            return np.empty(0, np.float32)
        if self._waiting >= self.limits.waiting:
            content = {"error": f"{self._waiting:,} requests are waiting; try again later"}
            raise Refused(503, content, {"retry-after": "1"})
        assert self._loop is not None
        done: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting += 1
        try:
            self._batcher.submit(rows, done)
            answer = await done
        finally:
            self._waiting -= 1
        if isinstance(answer, RowError):
            raise Refused(422, answer.to_dict())
        if isinstance(answer, Exception):
            warn(f"a request failed: {answer!r}")
            raise Refused(500, {"error": "the server failed on these rows"})
        return answer

    def _deliver(self, answers: Sequence[tuple[Any, Answer]]) -> None:
        def set_results() -> None:
            for done, answer in answers:
                if not done.done():  # its client may have gone
                    done.set_result(answer)

        assert self._loop is not None
        self._loop.call_soon_threadsafe(set_results)


def _rows(body: bytes, content_type: str, most: int) -> list[Any]:
    """Returns the rows of a request, of which there may be `most`."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (ARROW, *_JSON):
        raise Refused(415, {"error": f"content-type {kind[:60]!r}; send application/json or {ARROW}"})
    rows = _arrow_rows(body, most + 1) if kind == ARROW else _json_rows(body)
    if len(rows) > most:
        raise Refused(413, {"error": f"more than {most:,} rows; send them in several requests"})
    return rows


def _json_rows(body: bytes) -> list[Any]:
    try:
        content = _DECODER.decode(body.decode())
    except (ValueError, RecursionError) as problem:
        raise Refused(400, {"error": f"not JSON: {str(problem)[:200]}"}) from None
    if isinstance(content, dict) and isinstance(content.get("rows"), list) and len(content) == 1:
        content = content["rows"]
    if not isinstance(content, list):
        raise Refused(400, {"error": 'send a list of rows, as in [{"user": "u17", "price": 9.5}]'})
    return content


def _arrow_rows(body: bytes, most: int) -> list[Any]:
    """Returns the first rows of a stream: a column of nulls takes no bytes, however many rows it has."""
    import polars as pl

    try:
        frame = pl.read_ipc_stream(io.BytesIO(body), n_rows=most)
        # As text, a float32 has the digits that it was written with.
        return frame.with_columns(pl.col(pl.Float32).cast(pl.String)).to_dicts()
    except (pl.exceptions.PolarsError, OSError, ValueError, pl.exceptions.PanicException) as problem:
        raise Refused(400, {"error": f"not an Arrow stream: {str(problem)[:200]}"}) from None


def _answer(probabilities: np.ndarray, accept: str) -> Response:
    if ARROW in accept:
        import polars as pl

        content = io.BytesIO()
        pl.DataFrame({"probability": probabilities}).write_ipc_stream(content)
        return Response(content.getvalue(), media_type=ARROW)
    # The shortest decimals of float32, as `predict` writes them to text.
    numbers = ",".join(map(str, probabilities))
    return Response(f'{{"probabilities":[{numbers}]}}', media_type="application/json")


def make_app(service: Service) -> FastAPI:
    """Returns the application."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        service.begin(loop)
        tasks: set[asyncio.Task[None]] = set()

        def on_signal() -> None:
            task = loop.create_task(_reload_and_say(service))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        if threading.current_thread() is threading.main_thread():
            loop.add_signal_handler(signal.SIGHUP, on_signal)
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="dlrmctl serve", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)

    @app.post("/score")
    async def score(request: Request) -> Response:
        return await service.score(request)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return service.health()

    @app.get("/schema")
    async def schema() -> Response:
        return JSONResponse(service.scorer.describe())

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.registry), media_type="text/plain; version=0.0.4")

    @app.post("/reload")
    async def reload(request: Request) -> Response:
        host = request.client.host if request.client else ""
        if not _is_loopback(host):
            return JSONResponse({"error": "only this machine may reload the model"}, 403)
        try:
            await asyncio.to_thread(service.reload)
        except BundleError as problem:
            return JSONResponse({"error": f"{problem}; the earlier model remains"}, 409)
        return JSONResponse(service.health())

    return app


async def _reload_and_say(service: Service) -> None:
    try:
        await asyncio.to_thread(service.reload)
    except BundleError as problem:
        warn(f"{problem}; the earlier model remains")
    else:
        say(f"loaded {service.path} again")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
