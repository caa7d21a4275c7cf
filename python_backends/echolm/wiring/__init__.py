"""Settings to objects: the only place that knows how the parts of EchoLM fit together.

Here nothing is decided and nothing computed; each function reads the settings that a part needs
and gives it its collaborators. What takes long to import or needs a package that not every
process uses (Milvus, Redis, Triton's client, the embedding runtime) is imported by the function
that builds it.
"""

from echolm.wiring.examples import (
    build_admission,
    build_maintenance,
    build_off_peak_replay,
    build_replayer,
    build_retention,
    build_writer,
    open_statistics,
    open_write_ahead_log,
)
from echolm.wiring.learning import (
    build_feedback_tokens,
    build_learner,
    needed_snapshots,
    open_event_log,
)
from echolm.wiring.llms import build_endpoints, build_judge, build_llm_clients
from echolm.wiring.retrieval import (
    build_selector,
    build_text_embedder,
    example_token_counter,
    open_prefix_index,
    open_store,
)
from echolm.wiring.routing import (
    Router,
    build_bandit,
    build_router,
    open_load_table,
)

__all__ = [
    "Router",
    "build_admission",
    "build_bandit",
    "build_endpoints",
    "build_feedback_tokens",
    "build_judge",
    "build_learner",
    "build_llm_clients",
    "build_maintenance",
    "build_off_peak_replay",
    "build_replayer",
    "build_retention",
    "build_router",
    "build_selector",
    "build_text_embedder",
    "build_writer",
    "example_token_counter",
    "needed_snapshots",
    "open_event_log",
    "open_load_table",
    "open_prefix_index",
    "open_statistics",
    "open_store",
    "open_write_ahead_log",
]
