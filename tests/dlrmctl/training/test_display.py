"""The lines of progress."""

import pytest

from dlrmctl.training.display import TrainingDisplay


def test_an_epoch_that_may_not_be_the_last_is_named_with_the_time_left(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    display = TrainingDisplay(100, 0, speaks=False)
    monkeypatch.setattr(display.time_left, "_clock", lambda: now)
    display.begin_epoch(2, 50)
    texts = []
    for _ in range(50):
        now += 1.0
        display._done += 1
        texts.append(display._text_left())
    assert texts[29] == "20 s left in epoch 2"
    assert texts[-1] == ""
