"""Runs `dlrmctl serve`: a bundle behind a socket until SIGTERM or Ctrl-C."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from dlrmctl.errors import UserError
from dlrmctl.ranks.cores import usable_cores
from dlrmctl.ranks.process import num_threads
from dlrmctl.serving.app import RequestLimits, Service, make_app
from dlrmctl.serving.errors import BundleError

_GRACE_SECONDS = 30  # for requests that were accepted before the server was stopped
_BACKLOG = 2048


def serve(
    path: Path,
    *,
    host: str,
    port: int,
    limits: RequestLimits,
    started: Callable[[dict[str, Any]], None],
    compiled: bool = False,
) -> None:
    """Serves a bundle until the process is told to stop; requests in progress are answered.

    Args:
        path: the bundle.
        host, port: where to listen; port 0 takes a free one.
        limits: what is accepted.
        started: called once requests are accepted, with the URL, the model, and its columns.
        compiled: whether to run the native code of the bundle.

    Raises:
        UserError: if the bundle cannot be used, or the port.
    """
    with _listening(host, port) as listener, num_threads(usable_cores()):
        try:
            service = Service(path, limits, compiled=compiled)
        except BundleError as problem:
            raise UserError(*str(problem).split("; ", 1)) from None
        bound, number = listener.getsockname()[:2]
        url = f"http://{f'[{bound}]' if ':' in bound else bound}:{number}"
        scorer = service.scorer
        about = {"url": url, "model": str(path), **service.health()["model"], "columns": list(scorer.columns)}
        config = uvicorn.Config(
            make_app(service),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            server_header=False,
        )
        asyncio.run(_Server(config, lambda: started(about)).serve(sockets=[listener]))


class _Server(uvicorn.Server):
    """A server that says when it accepts requests."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._said = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._said()


def _listening(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Raises:
        UserError: if the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as problem:
        raise UserError(
            f"cannot listen on {host} port {port}: {problem.strerror}", "--port 0 takes a free one"
        ) from None
    return listener
