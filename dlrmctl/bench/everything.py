"""`dlrmctl bench all`: every benchmark after the other, each as its own command runs it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from dlrmctl.bench import measurements
from dlrmctl.bench.delivery import tagged
from dlrmctl.bench.lists import names_of
from dlrmctl.bench.measurements import Measurement
from dlrmctl.console import output, say
from dlrmctl.errors import UserError
from dlrmctl.launch import world_from_environment
from dlrmctl.options import one_of


def all_measurements(flags: Mapping[str, str], *, only: str | None, quick: bool) -> Measurement:
    """All of them, or some, as one.

    Args:
        flags: typed settings, for every one.
        only: commands with commas between them; None for all.
        quick: small and short, a few minutes in all.

    Raises:
        UserError: on more than one rank, or for a command that is none.
    """
    ranks = world_from_environment().world_size
    if ranks > 1:
        raise UserError(f"bench all is for one rank, not {ranks}", "bench step --nproc N measures several")
    known: dict[str, Callable[[], Measurement]] = {
        "step": lambda: measurements.step(flags, {"precision": "fp32,medium"}, quick=quick),
        "shampoo": lambda: measurements.shampoo(flags, {}, quick=quick),
        "convergence": lambda: measurements.convergence(flags, {}, quick=quick),
        "embeddings": lambda: measurements.embeddings(flags, {}, quick=quick),
        "data": lambda: measurements.data(None, {}, quick=quick),
    }
    names = list(known) if only is None else names_of("--only", only)
    for name in names:
        one_of("--only", name, tuple(known))
    parts = [known[name]() for name in names]

    def run() -> dict[str, Any]:
        results, seconds = {}, {}
        for part in parts:
            started = time.monotonic()
            say(f"bench {part.command}")
            measured = part.run()
            assert measured is not None
            results[part.command] = tagged(part.command, measured, part.options)
            seconds[part.command] = time.monotonic() - started
        return {"results": results, "seconds": seconds}

    def show(result: dict[str, Any]) -> None:
        for part in parts:
            output.print(f"bench {part.command}, {result['seconds'][part.command]:.0f} s")
            part.show(result["results"][part.command])

    return Measurement("all", {"only": names, "quick": quick}, [], run, show)
