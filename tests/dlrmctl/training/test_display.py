"""The lines of progress."""

import pytest

from dlrmctl.training.display import TrainingDisplay, thinned


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


@pytest.mark.parametrize(
    ("per_epoch", "every", "most", "lines"),
    [(40, 2, 100, {1: 15, 4: 25, 30: 40}), (500, 25, 100, {1: 13, 4: 28}), (40, 2, 2, {30: 600})],
)
def test_lines_get_rarer_as_a_run_without_a_planned_end_gets_longer(
    per_epoch: int, every: int, most: int, lines: dict[int, int]
):
    for epochs, expected in lines.items():
        steps = range(every, epochs * per_epoch + 1, every)
        printed = [step for step in steps if step % thinned(every, step, most=most) == 0]
        assert abs(len(printed) - expected) <= 3
