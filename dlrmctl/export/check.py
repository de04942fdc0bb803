"""Run as a file, by a process that has torch and nothing of this program: scores rows with an exported model.

    check.py MODEL.pt2 ROWS.pt SCORES.pt

It ends with status 0 and the probabilities written, or with the reason on standard error.
"""

import sys
from typing import Any

import torch

# A server meets batches of one row and of odd sizes; the last size is for all rows that are left.
SIZES = (1, 7, 1000, 4096)
FOREIGN = ("torchrec", "fbgemm_gpu", "dlrmctl")


def batches(rows: int) -> list[slice]:
    """Slices of rows that are scored together."""
    parts: list[slice] = []
    start = 0
    while start < rows:
        size = SIZES[min(len(parts), len(SIZES) - 1)]
        parts.append(slice(start, start + size))
        start += size
    return parts


def main(model_file: str, rows_file: str, scores_file: str) -> None:
    """Scores the rows, and makes sure that nothing but torch was needed."""
    model: Any = torch.export.load(model_file).module()
    rows = torch.load(rows_file, weights_only=True)
    dense, ids, lists = rows["dense"], rows["ids"], rows["lists"]
    scores = []
    with torch.no_grad():
        for part in batches(len(dense)):
            more = [{name: values[part] for name, values in lists.items()}] if lists else []
            scores.append(model(dense[part], ids[part], *more))
    present = [name for name in FOREIGN if name in sys.modules]
    if present:
        sys.exit(f"the model needed {', '.join(present)} to be loaded")
    torch.save(torch.cat(scores), scores_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
