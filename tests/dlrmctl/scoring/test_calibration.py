"""The picture of calibration and ROC is labelled."""

import re
from pathlib import Path

import numpy as np
import pytest

from dlrmctl.scoring.calibration import draw_calibration_and_roc


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits_N = random.normal(-2, 1.5, 2000).astype(np.float32)
    return logits_N, random.random(2000) < 1 / (1 + np.exp(-logits_N))


def test_every_line_and_bar_is_named_and_the_area_given(scores: tuple[np.ndarray, np.ndarray], tmp_path: Path):
    logits_N, labels_N = scores
    draw_calibration_and_roc(logits_N, labels_N, "a model", tmp_path / "c.svg")
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "c.svg").read_text(), re.DOTALL)
    below = np.sum(logits_N[labels_N][:, None] > logits_N[~labels_N]) / (labels_N.sum() * (~labels_N).sum())
    assert {"a model", "perfect calibration", "± 2 standard errors", f"model, AUC {below:.4f}"} <= set(texts)
