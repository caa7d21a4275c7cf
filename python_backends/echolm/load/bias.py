"""What load takes off each LLM's score in the router (paper, appendix)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from echolm.load.tracker import ServingLoad
from echolm.settings import LLMSettings, RoutingSettings


class LoadBias:
    """What load takes off each LLM's score.

    LLMs that share hardware are one pool. Its load is the sum of their smoothed requests in flight,
    each divided by the LLM's ``capacity``, which is what it serves at once when it has the hardware
    to itself. At 1 the pool is full, and more requests only wait.

    Whichever LLM fills a pool, a request of the most expensive one relieves it most by going
    elsewhere, so the bias follows cost: this is the paper's formula, with the paper's single load.
    An LLM with hardware of its own loses score only when it is itself overloaded, so a queue at
    the small LLM never drives requests off an idle large one.

    Up to ``routing.load_threshold`` there is no bias. The smoothing has a half-life of about a
    second, much less than a burst and more than the gaps of ordinary arrivals, so the bias comes
    and goes within seconds. Since it drives load away, it settles where what remains just fits.
    Its *lasting* size says how much quality is given up for want of hardware, and is the signal
    to scale by (metric ``echolm_load_bias``).
    """

    def __init__(
        self, settings: RoutingSettings, llms: Sequence[LLMSettings], load: ServingLoad
    ) -> None:
        self._settings = settings
        self._llms = tuple(llms)
        self._load = load
        self._highest_cost = max(llm.cost for llm in llms)

    def loads(self) -> dict[str, float]:
        """The load of each LLM's pool; 1 is as much as it serves without queueing."""
        pools: dict[str, float] = {}
        for llm in self._llms:
            share = self._load.load(llm.name) / llm.capacity
            pools[llm.pool] = pools.get(llm.pool, 0.0) + share
        return {llm.name: pools[llm.pool] for llm in self._llms}

    def __call__(self) -> Mapping[str, float]:
        """What each LLM's score loses now, in quality."""
        s, loads = self._settings, self.loads()
        biases = {}
        for llm in self._llms:
            cost = llm.cost / self._highest_cost
            biases[llm.name] = load_bias(
                loads[llm.name], s.load_threshold, cost, s.load_bias, s.load_gain
            )
        return biases


def load_bias(
    load: float, threshold: float, relative_cost: float, scale: float, gain: float
) -> float:
    """lambda_0 * tanh(gamma * max(0, load - threshold)) * cost, which is 0 under moderate load.

    Args:
        relative_cost: the LLM's cost, with 1 for the most expensive LLM.
        scale: lambda_0, the largest bias, in quality.
        gain: gamma, how fast the bias grows with the load.
    """
    return scale * math.tanh(gain * max(0.0, load - threshold)) * relative_cost
