"""Pictures of results, as PNG or SVG. Matplotlib is loaded when the first one is drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import whole_file
from dlrmctl.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
# Dark on white, whatever is around the picture; the colours of Okabe and Ito, which the colour-blind tell apart.
_STYLE: Any = {  # matplotlib names all its keys
    "svg.hashsalt": "dlrmctl",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": "small",
}
_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#882255", "#666666", "black"]


def check_picture(path: Path) -> Path:
    """The path, if a picture can be written there; asked before the work that it will show.

    Raises:
        UserError: for another kind of file, or a directory that does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a picture is a file ending in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: there is no such directory", f"mkdir -p {path.parent}")
    return path


@contextmanager
def picture(path: Path, *, width: float = 7.0, height: float = 4.0) -> Iterator["Figure"]:
    """An empty figure, written to `path` when the block ends well.

    Args:
        path: ends in .png or .svg.
        width, height: inches.
    """
    check_picture(path)
    # The figure's own canvas: no window system is asked for, and nothing global changes.
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "axes.prop_cycle": cycler(color=_COLOURS)}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        suffix = path.suffix.lower()
        metadata = {"Date": None} if suffix == ".svg" else None  # equal results, equal files
        try:
            with whole_file(path) as file:
                figure.savefig(file, format=suffix.removeprefix("."), dpi=144, metadata=metadata)
        except DataError as problem:
            raise UserError(problem.message, problem.hint) from problem


def thousands(axis: "Axis") -> None:
    """Writes the numbers of an axis as 1,000,000."""
    axis.set_major_formatter("{x:,.0f}")
