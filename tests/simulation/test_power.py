"""A few seeds of `tests.power_losses`."""

from __future__ import annotations

import pytest

from tests.power_losses import play

SEEDS = 6

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whenever_the_mains_are_lost(seed: int) -> None:
    play(seed)


def test_a_seed_gives_the_same_losses_again() -> None:
    assert play(4).world.digest == play(4).world.digest
