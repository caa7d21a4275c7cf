"""How much an evaluation sends: all of it, or just enough to see that it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Counts of requests, seconds and shares of all experiments.

    Attributes:
        history: past requests that the large LLM answered: the store.
        past_is_right: the store holds the right answers and not the large LLM's.
        requests: new requests, the same for every policy.
        concurrency: in flight at saturation; also while EchoLM learns.
        calm_concurrency: in flight where load must not decide.
        learning, learning_rated: requests from which EchoLM learns, and the share rated.
        labelled: past requests that the static router is trained on.
        ablation_learning, ablation_rated: requests from which each ablation learns, and the share
            rated.
        corruption_learning, corruption_rated: the same for the corrupted store.
        corrupted: share of its examples that is corrupted.
        drift_before, drift_ratings: requests before the drifts; ratings after each.
        noise: in the worse small LLM's weights.
        solicit_requests, solicit_share: requests of each way to rate, and the share rated.
        burst_learning, calm_s, burst_s, back_s: requests before the load, and its parts.
        trace_learning, trace_rated: requests from which EchoLM learns before a recorded trace, and
            the share rated.
        trace_s: of the trace, for each policy.
        prefix_requests: for each order.
        flawed: share of the stored answers that is corrupted before replay.
        replay_learning, replay_rated: requests served before it, and the share rated.
        replay_requests: new ones before and after.
        replay_top: most examples that are replayed, as a share of the past.
        window: requests over which curves are averaged.
    """

    history: int = 3_000
    past_is_right: bool = False
    requests: int = 300
    concurrency: int = 32
    calm_concurrency: int = 12
    warm_up: int = 8
    learning: int = 3_000
    learning_rated: float = 0.05
    labelled: int = 600
    ablation_learning: int = 600
    ablation_rated: float = 0.25
    corruption_learning: int = 2_000
    corruption_rated: float = 0.1
    corrupted: float = 0.2
    drift_before: int = 500
    drift_ratings: int = 500
    noise: float = 0.25
    solicit_requests: int = 2_000
    solicit_share: float = 0.2
    burst_learning: int = 500
    calm_s: float = 60.0
    burst_s: float = 60.0
    back_s: float = 50.0
    trace_learning: int = 1_000
    trace_rated: float = 0.2
    trace_s: float = 120.0
    prefix_requests: int = 600
    flawed: float = 0.15
    replay_learning: int = 2_000
    replay_rated: float = 0.05
    replay_requests: int = 3_000
    replay_top: float = 0.1
    window: int = 100


QUICK = Sizes(
    history=24,
    past_is_right=True,
    requests=12,
    concurrency=8,
    calm_concurrency=6,
    warm_up=2,
    learning=24,
    learning_rated=0.3,
    labelled=16,
    ablation_learning=12,
    corruption_learning=16,
    corruption_rated=0.5,
    drift_before=12,
    drift_ratings=12,
    solicit_requests=20,
    solicit_share=0.3,
    burst_learning=8,
    calm_s=2.0,
    burst_s=2.0,
    back_s=2.0,
    trace_learning=8,
    trace_s=2.0,
    prefix_requests=12,
    replay_learning=24,
    replay_rated=0.5,
    replay_requests=12,
    window=6,
)
