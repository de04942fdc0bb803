"""The remaining time is shown once it can be estimated."""

import pytest

from dlrmctl.console.time_left import TimeLeft


@pytest.mark.parametrize(
    ("pieces", "seconds", "total", "text"),
    [
        (1, 5.0, 100, ""),  # nothing is known of what follows the first one
        (3, 10.0, 100, ""),
        (100, 0.01, 1000, ""),  # a second says little
        (4, 1.5, 4164, "1 h 44 min left"),
        (400, 0.01, 2800, "24 s left"),
    ],
)
def test_the_time_left_is_told_after_some_work(pieces: int, seconds: float, total: int, text: str):
    now = 0.0
    left = TimeLeft(lambda: now)
    found = left.text(0, total)
    for piece in range(pieces):
        now += seconds if piece else 600.0  # the first takes longest
        found = left.text(piece + 1, total)
    assert found == text


def test_what_an_earlier_process_did_does_not_count():
    now = 0.0
    left = TimeLeft(lambda: now)
    for done in (900, 901, 902, 903, 904, 905):
        found = left.text(done, 1000)
        now += 1.0
    assert found == "1 min 35 s left"


def test_nothing_is_left_of_what_is_done_or_unknown():
    now = 0.0
    left = TimeLeft(lambda: now)
    for done in range(10):
        assert left.text(done, 0) == ""
        now += 1.0
    assert left.text(10, 10) == ""
