"""The schedule is a pure function with the documented shape."""

from itertools import pairwise

import pytest

from dlrmctl.optim.schedule import Schedule


def test_warms_up_holds_and_decays_quadratically_to_the_floor() -> None:
    schedule = Schedule(warmup_steps=4, hold_steps=2, decay_steps=4, floor=0.2)
    factors = [schedule(step) for step in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:7] == [1.0, 1.0, 1.0]
    expected = [0.2 + 0.8 * (1 - k / 4) ** 2 for k in (1, 2, 3, 4)]
    assert factors[7:11] == pytest.approx(expected, abs=1e-15)  # one rounding
    assert factors[11] == schedule(10_000_000) == 0.2


def test_cosine_passes_the_middle_halfway() -> None:
    schedule = Schedule(decay_steps=100, decay="cosine", floor=0.1)
    assert schedule(0) == 1.0
    assert schedule(50) == pytest.approx(0.55, abs=1e-15)
    assert schedule(100) == pytest.approx(0.1, abs=1e-15)


def test_never_rises_after_the_warm_up_and_stays_in_range() -> None:
    for decay in ("polynomial", "cosine"):
        schedule = Schedule(warmup_steps=3, hold_steps=1, decay_steps=50, decay=decay, power=1.5)
        factors = [schedule(step) for step in range(3, 80)]
        assert all(0 <= later <= earlier <= 1 for earlier, later in pairwise(factors))


def test_without_steps_it_is_constant() -> None:
    assert {Schedule()(step) for step in range(5)} == {1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps=-1 must be an integer of at least 0"),
        ({"decay_steps": 1.5}, "decay_steps=1.5 must be an integer"),
        ({"floor": 1.5}, "floor=1.5 must lie in [0, 1]"),
        ({"power": 0}, "power=0 must be above 0"),
        ({"decay": "linear"}, "decay='linear' must be 'polynomial' or 'cosine'"),
    ],
)
def test_refuses_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        Schedule(**settings)
    with pytest.raises(ValueError, match="step=-1"):
        Schedule()(-1)
