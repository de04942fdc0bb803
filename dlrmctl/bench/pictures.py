"""Pictures of benchmarks' results: bars with the range of their rounds, or with standard errors."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrmctl.console.pictures import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW_HEIGHT, _AXES_HEIGHT = 0.28, 1.1  # inches


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Writes the picture of any benchmark's result; of `bench all`, those of its parts below each other.

    Raises:
        UserError: if it cannot be written.
    """
    results = result["results"].values() if result["command"] == "all" else [result]
    panels = [panel for each in results for panel in PANELS[each["command"]](each)]
    heights = [_AXES_HEIGHT + _ROW_HEIGHT * len(panel.names) for panel in panels]
    with picture(path, height=sum(heights)) as figure:
        grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)
        for panel, axes in zip(panels, grid[:, 0], strict=True):
            panel.draw(axes)


class Panel:
    """Horizontal bars: names, values, how far each may be off below and above, and what they are."""

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
        axes.invert_yaxis()
        if self.mark is not None:
            axes.axvline(self.mark, color="0.3", linestyle=":", linewidth=1)
        axes.set_title(self.title, loc="left", fontsize="medium")
        axes.set_xlabel(self.unit)


def _ranges(spreads: Sequence[Mapping[str, float]], scale: float = 1.0) -> list[tuple[float, float, float]]:
    found = []
    for each in spreads:
        low, high = sorted((each["fastest"], each["slowest"]))
        found.append((scale * each["median"], scale * low, scale * high))
    return found


def _errors(entries: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float, float]]:
    """Values with one standard error to each side; None counts as 0."""
    found = []
    for each in entries:
        value, error = each[key] or 0.0, each[f"{key}_se"] or 0.0
        found.append((value, value - error, value + error))
    return found


def _step(result: Mapping[str, Any]) -> list[Panel]:
    variants, parts = result["variants"], result["parts_ms"]
    names, rows = list(variants), list(variants.values())
    return [
        Panel("training step", "examples/s, against base", names, _ranges([r["to_base"] for r in rows]), 1.0),
        Panel("training step", "% of the floor", names, _ranges([r["floor_share"] for r in rows], 100), 100.0),
        Panel("parts of the step", "ms", list(parts), _ranges(list(parts.values()))),
    ]


def _shampoo(result: Mapping[str, Any]) -> list[Panel]:
    ratios, parts = result["ratio_to_adagrad"], result["parts_ms"]
    flat = [(ms, ms, ms) for ms in parts.values()]
    return [
        Panel("step of the dense network", "time, against adagrad", list(ratios), _ranges(list(ratios.values())), 1.0),
        Panel("parts of shampoo's step", "ms", list(parts), flat),
    ]


def _convergence(result: Mapping[str, Any]) -> list[Panel]:
    entries, base = result["optimizers"], result["baseline"]
    values = _errors(list(entries.values()), "ne_difference")
    return [Panel("best validation NE", f"NE, against {base} (± standard error)", list(entries), values, 0.0)]


def _embeddings(result: Mapping[str, Any]) -> list[Panel]:
    entries, base = result["methods"], result["baseline"]
    names = [f"{name}, size {m['bytes'] / entries[base]['bytes']:.2f}" for name, m in entries.items()]
    values = _errors(list(entries.values()), "ne_difference")
    return [Panel("test NE", f"NE, against {base} (± standard error)", names, values, 0.0)]


def _data(result: Mapping[str, Any]) -> list[Panel]:
    reading = result["reading"]
    panels = [
        Panel("reading", "CPU ns/row", list(reading), _ranges([row["cpu_ns_per_row"] for row in reading.values()]))
    ]
    for rows, methods in result["preparing"].items():
        values = _ranges([row["cpu_ns_per_row"] for row in methods.values()], 1e-3)
        panels.append(Panel(f"preparing {int(rows):,} rows", "CPU us/row", list(methods), values))
    return panels


PANELS: dict[str, Callable[[Mapping[str, Any]], list[Panel]]] = {
    "step": _step,
    "shampoo": _shampoo,
    "convergence": _convergence,
    "embeddings": _embeddings,
    "data": _data,
}
