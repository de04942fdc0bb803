"""Scores rows with an exported model; run as a script, in a process that has torch and nothing of this program.

    check.py MODEL.pt2 ROWS.pt SCORES.pt

It ends with status 0 and the probabilities written, or with status 2 and the reason on standard error.
"""

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

# A server gets batches of one row and of odd sizes; the last size is for all remaining rows.
SIZES = (1, 7, 1000, 4096)
FOREIGN = ("torchrec", "fbgemm_gpu", "dlrmctl")


def batches(rows: int) -> list[slice]:
    """Returns slices of rows that are scored together."""
    parts: list[slice] = []
    start = 0
    while start < rows:
        size = SIZES[min(len(parts), len(SIZES) - 1)]
        parts.append(slice(start, start + size))
        start += size
    return parts


def load(model_file: str) -> Any:
    """The model in the file, as a module.

    Raises:
        ValueError: in one line, if the file is damaged or holds something else.
    """
    if not Path(model_file).is_file():
        raise ValueError(f"{model_file}: is not a file")
    try:
        with zipfile.ZipFile(model_file) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.export.load(model_file).module()
        reason = f"{damaged} does not match its checksum"
    except Exception as problem:  # whatever torch and its formats say of content that they do not expect
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    raise ValueError(f"{model_file}: damaged, or not a model that torch.export saved: {reason[:200]!r}")


def main(model_file: str, rows_file: str, scores_file: str) -> int:
    """Scores the rows, and checks that only torch was needed.

    Returns:
        The exit status.
    """
    try:
        model = load(model_file)
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 2
    rows = torch.load(rows_file, weights_only=True)
    dense, ids = rows["dense"], rows["ids"]
    lists = [given for given in (rows["lists"], rows["weights"]) if given]
    scores = []
    with torch.no_grad():
        for part in batches(len(dense)):
            more = [{name: values[part] for name, values in given.items()} for given in lists]
            scores.append(model(dense[part], ids[part], *more))
    present = [name for name in FOREIGN if name in sys.modules]
    if present:
        print(f"the model needed {', '.join(present)} to be loaded", file=sys.stderr)
        return 2
    torch.save(torch.cat(scores), scores_file)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
