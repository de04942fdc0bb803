"""Scores rows with a bundle; run as a script, in a new process.

    check_bundle.py MODEL.dlrm ROWS.pt SCORES.pt

ROWS.pt has inputs of the model, as `check` takes them, and raw rows as JSON. It ends with status 0 and the
probabilities of the inputs and the logits of the raw rows written, or with status 2 and the reason on standard error.
"""

import json
import sys

import numpy as np
import torch

from dlrmctl.export.check import batches
from dlrmctl.serving import BundleError, RowError, Scorer
from dlrmctl.serving.rows import ModelInputs

FOREIGN = ("torchrec", "fbgemm_gpu", "typer", "polars", "pyarrow")


def main(model_file: str, rows_file: str, scores_file: str) -> int:
    """Scores the rows, and checks that only torch and NumPy were needed.

    Returns:
        The exit status.
    """
    given = torch.load(rows_file, weights_only=True)
    dense, ids, lists = given["dense"].numpy(), given["ids"].numpy(), (given["lists"], given["weights"])
    raw = json.loads(given["raw"])
    try:
        scorer = Scorer(model_file, compiled=given["compiled"])
        scores, logits = [], [np.empty(0, np.float32)]
        for part in batches(len(dense)):
            some = [{name: values[part].contiguous().numpy() for name, values in each.items()} for each in lists]
            scores.append(scorer.probabilities(scorer.run(ModelInputs(dense[part], ids[part], *some))))
        logits += [scorer.logits(raw[part]) for part in batches(len(raw))]
    except (BundleError, RowError) as problem:
        print(problem, file=sys.stderr)
        return 2
    present = [name for name in FOREIGN if name in sys.modules]
    if present:
        print(f"the bundle needed {', '.join(present)} to be loaded", file=sys.stderr)
        return 2
    torch.save([torch.from_numpy(np.concatenate(parts)) for parts in (scores, logits)], scores_file)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
