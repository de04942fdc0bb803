"""Shell completion of choices, run directories and stores; if nothing matches, the shell completes file names."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_DEEPEST = 3  # levels below the directory that is being typed


def choices(words: Sequence[str]) -> Callable[[str], list[str]]:
    """Returns a completer for one of the words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Completes the path of a run directory."""
    return list(_directories(incomplete, "run.toml"))


def stores(incomplete: str) -> list[str]:
    """Completes the path of a prepared store."""
    return [path for path in _directories(incomplete, "manifest.json") if (Path(path) / "train.bin").exists()]


def _directories(incomplete: str, file: str) -> Iterator[str]:
    start = incomplete[: incomplete.rfind("/") + 1]
    for depth in range(1, _DEEPEST + 1):
        for found in sorted(Path(start or ".").glob("/".join(["*"] * depth + [file]))):
            path = start + str(found.parent.relative_to(start or "."))
            if path.startswith(incomplete) and "/." not in f"/{path}":
                yield path
