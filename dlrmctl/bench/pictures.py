"""Draws benchmark results: bars with the range of their rounds, or with standard errors."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrmctl.console.pictures import picture
from dlrmctl.console.text import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW_HEIGHT, _AXES_HEIGHT, _TITLE_HEIGHT = 0.28, 1.1, 0.4  # inches
_CURVES_HEIGHT = 10  # bars
_ROUNDS = "median and range of rounds"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Writes the picture of a benchmark's result; for `bench all`, those of its parts below each other.

    Raises:
        UserError: if it cannot be written.
    """
    results = result["results"].values() if result["command"] == "all" else [result]
    panels = [panel for each in results for panel in PANELS[each["command"]](each) if panel.names]
    heights = [_AXES_HEIGHT + _ROW_HEIGHT * len(panel.names) for panel in panels]
    with picture(path, height=sum(heights) + _TITLE_HEIGHT) as figure:
        environment = result["environment"]
        where = f"{counted(environment['threads'], 'thread')} of {environment['processor']}, {environment['device']}"
        figure.suptitle(f"dlrmctl bench {result['command']}, {where}", fontsize="small")
        grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)
        for panel, axes in zip(panels, grid[:, 0], strict=True):
            panel.draw(axes)


class Panel:
    """Horizontal bars: names, values, errors below and above, and their unit."""

    def __init__(
        self,
        title: str,
        unit: str,
        names: Sequence[str],
        values: Sequence[tuple[float, float, float]],
        mark: float | None = None,
    ) -> None:
        self.title, self.unit, self.names, self.values, self.mark = title, unit, names, values, mark

    def draw(self, axes: "Axes") -> None:
        places = range(len(self.names))
        middles = [middle for middle, _, _ in self.values]
        off = [[middle - low for middle, low, _ in self.values], [high - middle for middle, _, high in self.values]]
        axes.barh(places, middles, xerr=off, color="C0", ecolor="0.3", capsize=2, height=0.7)
        axes.set_yticks(places, self.names)
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        if self.mark is not None:
            axes.axvline(self.mark, color="0.3", linestyle=":", linewidth=1)
        axes.set_title(self.title)
        axes.set_xlabel(self.unit)


class Curves(Panel):
    """Lines on a logarithmic scale, by name; as tall as ten bars."""

    def __init__(self, title: str, unit: str, height: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        super().__init__(title, unit, [""] * _CURVES_HEIGHT, [])
        self.curves, self.height = curves, height

    def draw(self, axes: "Axes") -> None:
        for name, points in self.curves.items():
            known = [(at, value) for at, value in points if value > 0]
            axes.plot([at for at, _ in known], [value for _, value in known], label=name)
        axes.set_yscale("log")
        axes.set_title(self.title)
        axes.set_xlabel(self.unit)
        axes.set_ylabel(self.height)
        axes.legend()


def _ranges(spreads: Sequence[Mapping[str, float]], scale: float = 1.0) -> list[tuple[float, float, float]]:
    found = []
    for each in spreads:
        low, high = sorted((each["fastest"], each["slowest"]))
        found.append((scale * each["median"], scale * low, scale * high))
    return found


def _errors(entries: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float, float]]:
    """Returns values with one standard error to each side; None counts as 0."""
    found = []
    for each in entries:
        value, error = each[key] or 0.0, each[f"{key}_se"] or 0.0
        found.append((value, value - error, value + error))
    return found


def _without(entries: Mapping[str, Any], base: str) -> dict[str, Any]:
    """The entries that are not compared with themselves."""
    return {name: entry for name, entry in entries.items() if name != base}


def _step(result: Mapping[str, Any]) -> list[Panel]:
    variants, parts = result["variants"], result["parts_ms"]
    base = next(iter(variants))
    others = _without(variants, base)
    names, rows = list(variants), list(variants.values())
    ratios = _ranges([row["to_base"] for row in others.values()])
    shares = _ranges([row["floor_share"] for row in rows], 100)
    faster, near = f"times {base}'s examples/s ({_ROUNDS})", f"% of the floor's speed ({_ROUNDS})"
    return [
        Panel(f"Training step against {base}", faster, list(others), ratios, 1.0),
        Panel("Training step against its floor: bare products and row accesses", near, names, shares, 100.0),
        Panel(f"Parts of a training step, {base}", f"ms ({_ROUNDS})", list(parts), _ranges(list(parts.values()))),
    ]


def _shampoo(result: Mapping[str, Any]) -> list[Panel]:
    ratios, parts = _without(result["ratio_to_adagrad"], "adagrad"), result["parts_ms"]
    flat = [(ms, ms, ms) for ms in parts.values()]
    times = _ranges(list(ratios.values()))
    return [
        Panel("Time of a step of the dense network", f"times adagrad's ({_ROUNDS})", list(ratios), times, 1.0),
        Panel("Parts of a step with shampoo", "ms", list(parts), flat),
    ]


def _convergence(result: Mapping[str, Any]) -> list[Panel]:
    base = result["baseline"]
    entries = _without(result["optimizers"], base)
    values = _errors(list(entries.values()), "ne_difference")
    return [
        Panel("Best validation NE, lower is better", f"NE minus {base}'s ± standard error", list(entries), values, 0.0)
    ]


def _embeddings(result: Mapping[str, Any]) -> list[Panel]:
    methods, base = result["methods"], result["baseline"]
    entries = _without(methods, base)
    names = [f"{name}, {100 * m['bytes'] / methods[base]['bytes']:.0f} % of the bytes" for name, m in entries.items()]
    values = _errors(list(entries.values()), "ne_difference")
    return [Panel("Test NE, lower is better", f"NE minus {base}'s ± standard error", names, values, 0.0)]


def _noise(result: Mapping[str, Any]) -> list[Panel]:
    curves = {
        name: [(entry["examples"], entry[name]) for entry in result["curve"] if entry[name] is not None]
        for name in result["batches"]
    }
    return [Curves("Gradient noise scale", "examples", "batch", curves)]


def _data(result: Mapping[str, Any]) -> list[Panel]:
    reading = result["reading"]
    values = _ranges([row["cpu_ns_per_row"] for row in reading.values()])
    panels = [Panel("Reading a store", f"CPU ns per row ({_ROUNDS})", list(reading), values)]
    for rows, methods in result["preparing"].items():
        values = _ranges([row["cpu_ns_per_row"] for row in methods.values()], 1e-3)
        panels.append(Panel(f"Preparing {int(rows):,} rows", f"CPU µs per row ({_ROUNDS})", list(methods), values))
    return panels


def _baseline(result: Mapping[str, Any]) -> list[Panel]:
    programs = result["programs"]
    curves = {name: found["curve"] for name, found in result["solvers"].items()}
    times = _ranges([found["seconds"] for found in programs.values()])
    return [
        Panel(f"Fit of {result['examples']:,} examples", f"s ({_ROUNDS})", list(programs), times),
        Curves("Convergence", "passes over the data", "objective above its optimum", curves),
    ]


def _compression(result: Mapping[str, Any]) -> list[Panel]:
    title = f"Compression of {result['rows']:,} rows, {result['ratio']:.1f} times smaller"
    names = {"wall clock": "seconds", "CPU": "cpu_seconds"}
    return [Panel(title, f"s ({_ROUNDS})", list(names), _ranges([result[key] for key in names.values()]))]


PANELS: dict[str, Callable[[Mapping[str, Any]], list[Panel]]] = {
    "step": _step,
    "shampoo": _shampoo,
    "convergence": _convergence,
    "embeddings": _embeddings,
    "noise": _noise,
    "data": _data,
    "baseline": _baseline,
    "compression": _compression,
}
