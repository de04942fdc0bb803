"""The command `dlrmctl serve`."""

import importlib.util
import sys
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from dlrmctl.cli.options import AsJson, option
from dlrmctl.console.console import messages, notice
from dlrmctl.errors import UserError
from dlrmctl.settings.parse import whole_number

_LOCAL = ("127.0.0.1", "::1", "localhost")
_LIMITS = "Limits on requests"


def serve(
    model: Annotated[Path, typer.Argument(help="Bundle written by `dlrmctl export`.", metavar="MODEL.dlrm")],
    host: Annotated[
        str, option("Address to listen on. Others can reach only 0.0.0.0 and the like.", "HOST")
    ] = "127.0.0.1",
    port: Annotated[str, option("Port to listen on; 0 takes a free one.", "N")] = "8000",
    max_rows: Annotated[str, option("Refuse a request of more rows.", "N", _LIMITS)] = "4096",
    max_bytes: Annotated[str, option("Refuse a request of more bytes.", "N", _LIMITS)] = "16M",
    max_waiting: Annotated[str, option("Refuse requests while this many wait.", "N", _LIMITS)] = "1024",
    batch_rows: Annotated[
        str, option("Score at most this many rows of waiting requests at once.", "N", _LIMITS)
    ] = "1024",
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Run the native code in the bundle. Only for files that you trust.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Serve a bundle over HTTP: raw rows in, probabilities out.

    \b
    dlrmctl serve model.dlrm
    curl -d '[{"user": "u17", "item": 3}]' localhost:8000/score

    POST /score takes rows as JSON or as an Arrow stream. GET /schema lists their columns; /health and /metrics
    (Prometheus) tell how the server is. SIGHUP, or POST /reload from this machine, loads the file again without losing
    a request. SIGTERM answers the requests in progress and ends.

    There is no authentication: keep the server on this machine or behind one that has it.
    """
    number = whole_number("--port", port, at_least=0, at_most=65535)
    most = [
        whole_number(flag, value, at_least=1)
        for flag, value in (
            ("--max-rows", max_rows),
            ("--max-bytes", max_bytes),
            ("--max-waiting", max_waiting),
            ("--batch-rows", batch_rows),
        )
    ]
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"dlrmctl serve needs {missing[0]}", 'pip install "dlrmctl[serve]"')
    if not model.is_file():
        raise UserError(f"{model}: no such file", "dlrmctl export RUN -o model.dlrm writes one")
    notice("loading PyTorch")
    from dlrmctl.serving.app import RequestLimits
    from dlrmctl.serving.server import serve as run

    def started(about: dict[str, Any]) -> None:
        if json:
            sys.stdout.write(dumps(about) + "\n")
            sys.stdout.flush()
            return
        columns = about["columns"]
        shown = ", ".join(columns[:8]) + (f" and {len(columns) - 8} more" if len(columns) > 8 else "")
        messages.print(f"serving {model} ({about['checkpoint']}, {about['precision']}) at {about['url']}")
        messages.print(f"rows have the columns {shown}")
        if host not in _LOCAL:
            messages.print("other machines may reach it, and it has no authentication", label="warning: ")

    run(model, host=host, port=number, limits=RequestLimits(*most), started=started, compiled=compiled)
