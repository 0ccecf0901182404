"""The pytest plugin that comes with everram: the fixture `everram_simulation`.

    def test_mine(everram_simulation):
        everram_simulation(scenario, seeds=range(1, 51), hosts=3, actors=[MyActor])

What it does is `everram.actors.chaos.testkit.run_seeds`. Nothing of everram is loaded before a test asks for it.
"""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def everram_simulation() -> Any:
    """Runs a scenario in a simulated cluster for each seed, and fails with the first that breaks something."""
    from everram.actors.chaos.testkit import run_seeds

    return run_seeds
