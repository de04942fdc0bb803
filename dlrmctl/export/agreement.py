"""How the scores of an exported model agree with those of the checkpoint it was made from.

Dimensions: N rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dlrmctl.errors import UserError
from dlrmctl.export.sample import Sample
from dlrmctl.paired import compare_scores

# A thousand roundings of float32, all in one direction, on a logit; the sigmoid's slope is at most 1/4.
ROUNDING = 1000 * 2**-24 / 4
_LEAST = 2.0**-26  # of a probability, so that its logit is finite


def agreement(sample: Sample, probabilities_N: np.ndarray) -> dict[str, Any]:
    """How these probabilities differ from the checkpoint's on the same rows.

    Returns:
        "rows"; "largest_difference" of two probabilities; "ne_checkpoint" and "ne_export"; "ne_rise", relative, with
        its standard error "ne_rise_se". NE is None where all labels are the same.
    """
    own_N = torch.from_numpy(sample.logits_N).sigmoid().numpy()
    logits_N = torch.from_numpy(probabilities_N).double().logit(eps=_LEAST).numpy()
    ne = compare_scores(sample.logits_N, logits_N, sample.labels_N).get("ne")
    return {
        "rows": len(sample),
        "largest_difference": float(np.abs(probabilities_N - own_N).max()),
        "ne_checkpoint": ne.a if ne else None,
        "ne_export": ne.b if ne else None,
        "ne_rise": ne.difference / ne.a if ne else None,
        "ne_rise_se": ne.se / ne.a if ne else None,
    }


def refuse_disagreement(found: Mapping[str, Any], checkpoint: str, precision: str, max_ne_rise: float) -> None:
    """
    Args:
        found: by `agreement`.
        max_ne_rise: what "int8" may cost, relative; the other precisions may round differently, and that is all.

    Raises:
        UserError: if the scores differ by more, or NE has to tell and all labels are the same.
    """
    difference, rise = found["largest_difference"], found["ne_rise"]
    if precision != "int8" and not difference <= ROUNDING:  # what is not a number is refused too
        raise UserError(
            f"the exported model differs from {checkpoint} by {difference:.2g} in a probability; rounding explains "
            f"{ROUNDING:.2g}"
        )
    if precision == "int8" and rise is None:
        raise UserError(
            f"what int8 costs {checkpoint} is not known: NE needs both labels among the checked rows",
            f"--check-rows above {found['rows']:,}",
        )
    if precision == "int8" and not rise <= max_ne_rise:
        raise UserError(
            f"int8 raises the NE of {checkpoint} by {100 * rise:.3g} %, more than {100 * max_ne_rise:g} %",
            "--precision fp32, or a larger --max-ne-increase",
        )
