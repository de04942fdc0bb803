"""Figures as PNG or SVG. Matplotlib is loaded when the first one is drawn."""

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
# Dark on white on every page; the colours of Okabe and Ito, which are safe for colour-blind readers.
_STYLE: Any = {  # matplotlib's types list all keys
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
    """Returns the path if a picture can be written there; call it before long work.

    Raises:
        UserError: for another file type, or a directory that does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a picture must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such directory", f"mkdir -p {path.parent}")
    return path


@contextmanager
def picture(path: Path, *, width: float = 7.0, height: float = 4.0) -> Iterator["Figure"]:
    """Yields an empty figure, which is written to `path` if the block succeeds.

    Args:
        path: ends in .png or .svg.
        width, height: inches.
    """
    check_picture(path)
    # The figure has its own canvas: no window system is needed, and no global state changes.
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_STYLE, "axes.prop_cycle": cycler(color=_COLOURS)}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        suffix = path.suffix.lower()
        metadata = {"Date": None} if suffix == ".svg" else None  # equal figures give equal files
        try:
            with whole_file(path) as file:
                figure.savefig(file, format=suffix.removeprefix("."), dpi=144, metadata=metadata)
        except DataError as problem:
            raise UserError(problem.message, problem.hint) from problem


def thousands(axis: "Axis") -> None:
    """Formats the numbers of an axis as 1,000,000."""
    axis.set_major_formatter("{x:,.0f}")
