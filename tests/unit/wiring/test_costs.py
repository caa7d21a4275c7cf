"""What an LLM costs is told by the ratio to the others' costs."""

from __future__ import annotations

import numpy as np
import pytest
from echolm.bandit.features import DIMENSION
from echolm.settings import Settings
from echolm.wiring.routing import build_bandit


def probabilities(settings: Settings) -> list[dict[str, float]]:
    """Of each LLM, for requests of which nothing was learnt."""
    _, bandit = build_bandit(settings)
    rng = np.random.default_rng(0)
    contexts = rng.random((20, DIMENSION)).astype(np.float32)
    return [dict(choice.probabilities) for choice in bandit.choose_many(contexts, {}, rng)]


@pytest.mark.parametrize("unit", [0.0097, 24.7])
def test_the_unit_of_cost_does_not_matter(unit: float) -> None:
    settings = Settings()
    llms = tuple(llm.model_copy(update={"cost": llm.cost * unit}) for llm in settings.llms)
    in_other_units = probabilities(settings.model_copy(update={"llms": llms}))
    for scaled, plain in zip(in_other_units, probabilities(settings), strict=True):
        assert scaled == pytest.approx(plain)
    cheaper = tuple(llm.model_copy(update={"cost": 1.0}) for llm in settings.llms)
    assert probabilities(settings.model_copy(update={"llms": cheaper})) != in_other_units
