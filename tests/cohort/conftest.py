"""Fixtures of the cohort's tests."""

import pytest

from cohort.preparation import brain, registration, steps


@pytest.fixture
def quick_steps(monkeypatch):
    """All steps of preparation, each with less effort: for what does not hang on how well it does."""
    monkeypatch.setattr(steps, "BIAS_ITERATIONS", (10, 5))
    monkeypatch.setattr(brain, "WARP_LEVELS", ((4.0, 40), (2.0, 5)))
    monkeypatch.setattr(registration, "SEARCH_DEGREES", (-10.0, 10.0))
    monkeypatch.setattr(registration, "SEARCH_SHIFTS_MM", (-20.0, 0.0, 20.0))
    monkeypatch.setattr(registration, "KEPT_COARSE", 4)
