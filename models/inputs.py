"""Transforms dense features before the bottom MLP. A missing value is NaN.

B examples, I dense features, M of them with an indicator, K knots of each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MOST_DEVIATIONS = 10.0  # from the mean: limits outliers among the training examples


class RawInputs(nn.Module):
    """Passes dense features through, and replaces missing values.

    Args:
        stand_ins: the replacement of each feature's missing values.

    Shapes:
        dense_BI [B, I] -> the same.
    """

    stand_in_I: Tensor

    def __init__(self, stand_ins: Sequence[float]) -> None:
        super().__init__()
        self.out_features = len(stand_ins)
        # Not persistent, since checkpoints of earlier versions do not have it.
        self.register_buffer("stand_in_I", torch.tensor(stand_ins, dtype=torch.float32), persistent=False)

    def forward(self, dense_BI: Tensor) -> Tensor:
        return torch.where(dense_BI.isnan(), self.stand_in_I, dense_BI)


class NormalizedInputs(nn.Module):
    """Scales dense features, 0 where missing, and appends indicators: 1 where a feature is missing.

    Args:
        indicated: whether each feature has an indicator.

    Shapes:
        dense_BI [B, I] -> [B, I + M].
    """

    indicated_I: Tensor
    places_M: Tensor

    def __init__(self, indicated: Sequence[bool]) -> None:
        super().__init__()
        places = [place for place, has_indicator in enumerate(indicated) if has_indicator]
        self.out_features, self._all_there = len(indicated) + len(places), not places
        self.register_buffer("indicated_I", torch.tensor(indicated, dtype=torch.float32))
        self.register_buffer("places_M", torch.tensor(places, dtype=torch.int64), persistent=False)

    def forward(self, dense_BI: Tensor) -> Tensor:
        scaled_BI = self.scaled(dense_BI).nan_to_num(nan=0.0)
        if self._all_there:
            return scaled_BI
        missing_BM = dense_BI.index_select(1, self.places_M).isnan()
        return torch.cat([scaled_BI, missing_BM.to(scaled_BI.dtype)], 1)

    def scaled(self, dense_BI: Tensor) -> Tensor:
        """Returns the scaled features; missing values may become any number."""
        raise NotImplementedError


class StandardInputs(NormalizedInputs):
    """Scales each feature to mean 0 and standard deviation 1, and clips it to the range of the training examples.

    Args:
        means, deviations: mean and standard deviation of each feature over the training examples.
        lows, highs: smallest and largest value of each feature.
        indicated: see `NormalizedInputs`.
    """

    mean_I: Tensor
    scale_I: Tensor
    low_I: Tensor
    high_I: Tensor

    def __init__(
        self,
        means: Sequence[float],
        deviations: Sequence[float],
        lows: Sequence[float],
        highs: Sequence[float],
        indicated: Sequence[bool],
    ) -> None:
        super().__init__(indicated)
        scales = [1 / deviation if deviation > 0 else 0.0 for deviation in deviations]
        for name, ends in (("low_I", lows), ("high_I", highs)):
            scaled = [(end - mean) * scale for end, mean, scale in zip(ends, means, scales, strict=True)]
            clipped = [min(max(end, -MOST_DEVIATIONS), MOST_DEVIATIONS) for end in scaled]
            self.register_buffer(name, torch.tensor(clipped, dtype=torch.float32))
        self.register_buffer("mean_I", torch.tensor(means, dtype=torch.float32))
        self.register_buffer("scale_I", torch.tensor(scales, dtype=torch.float32))

    def scaled(self, dense_BI: Tensor) -> Tensor:
        return ((dense_BI - self.mean_I) * self.scale_I).clamp(self.low_I, self.high_I)


class QuantileInputs(NormalizedInputs):
    """Maps each feature to the normal score of its rank: linear between knots, constant beyond the first and last.

    Args:
        values: the knots of each feature, ascending; their number may differ.
        scores: the score at each knot.
        indicated: see `NormalizedInputs`.
    """

    knots_IK: Tensor
    segments_IK3: Tensor
    firsts_I1: Tensor

    def __init__(
        self, values: Sequence[Sequence[float]], scores: Sequence[Sequence[float]], indicated: Sequence[bool]
    ) -> None:
        super().__init__(indicated)
        num_knots = max(2, *(len(knots) for knots in values))
        knots_IK = _filled(values, num_knots)
        scores_IK = _filled(scores, num_knots)
        widths_IK = knots_IK.diff(dim=1)
        slopes_IK = torch.where(widths_IK > 0, scores_IK.diff(dim=1) / widths_IK, 0.0)
        slopes_IK.clamp_(max=torch.finfo(torch.float32).max)  # knots may be as close as the smallest float32
        # A segment goes from a knot to the next: its start, its score there, and its slope.
        segments = [knots_IK, scores_IK, torch.nn.functional.pad(slopes_IK, (0, 1))]
        self.register_buffer("knots_IK", knots_IK.float())
        self.register_buffer("segments_IK3", torch.stack(segments, 2).float())
        firsts_I1 = torch.arange(len(values)).unsqueeze(1) * num_knots
        self.register_buffer("firsts_I1", firsts_I1, persistent=False)

    def scaled(self, dense_BI: Tensor) -> Tensor:
        low_I, high_I = self.knots_IK[:, 0], self.knots_IK[:, -1]
        dense_IB = dense_BI.clamp(low_I, high_I).T.contiguous()
        places_IB = torch.searchsorted(self.knots_IK, dense_IB, right=True).clamp(max=self.knots_IK.shape[1]) - 1
        segments_N3 = self.segments_IK3.flatten(0, 1).index_select(0, (places_IB + self.firsts_I1).flatten())
        start_N, score_N, slope_N = segments_N3.unbind(1)
        scores_N = score_N + (dense_IB.flatten() - start_N) * slope_N
        return scores_N.view(dense_IB.shape).T


def _filled(rows: Sequence[Sequence[float]], length: int) -> Tensor:
    """Returns float64 [I, K]: each row padded with its last number, or 0."""
    return torch.tensor([[*row, *[row[-1] if row else 0.0] * (length - len(row))] for row in rows], dtype=torch.float64)
