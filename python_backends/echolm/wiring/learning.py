"""The learning log, what follows it, and the tokens by which ratings come into it."""

from __future__ import annotations

from collections.abc import Sequence

from echolm.learning.event_log import EventLog
from echolm.learning.learner import Learnable, Learner
from echolm.learning.tokens import FeedbackTokens
from echolm.settings import Settings


def open_event_log(settings: Settings) -> EventLog:
    """The log that ``event_log`` names: Redis for a URL, else SQLite.

    Raises:
        ConfigurationError: the Redis server would lose what it has acknowledged.
        UnavailableError: the SQLite file cannot be used.
    """
    if path := settings.event_log_path:
        from echolm.learning.sqlite_log import SQLiteEventLog

        return SQLiteEventLog(path)
    from echolm.learning.redis_log import RedisEventLog

    return RedisEventLog(settings.event_log, settings.learning)


def build_learner(settings: Settings, log: EventLog, learnables: Sequence[Learnable]) -> Learner:
    """What keeps models up to date with the learning log, with snapshots as configured."""
    return Learner(log, learnables, settings.learning.snapshot_every)


def needed_snapshots(settings: Settings) -> frozenset[str]:
    """Names, without fingerprints, of the snapshots without which no event may be removed."""
    retrieval = settings.retrieval
    parts = ["request_statistics"]
    parts += ["example_count"] if retrieval.adaptive_num_examples else []
    parts += ["utility"] if retrieval.utility == "learned" else []
    bandit = "bandit+reuse" if settings.routing.reuse_error > 0.0 else "bandit"
    manager = "judge_agreement+request_statistics"
    return frozenset({bandit, "statistics", manager, "+".join(sorted(parts))})


def build_feedback_tokens(settings: Settings) -> FeedbackTokens:
    """What makes and reads feedback tokens; ConfigurationError without a signing key."""
    feedback = settings.feedback
    return FeedbackTokens(feedback.signing_key.get_secret_value(), feedback.token_ttl_s)
