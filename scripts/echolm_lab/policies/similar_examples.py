"""The small LLM with the most similar examples: settings under which the server does just that.

The policy itself is an :class:`~echolm_lab.policies.llm.LLMPolicy` of the small LLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIMILAR_ONLY: Mapping[str, Mapping[str, Any]] = {
    "retrieval": {
        "utility": "similarity",
        "adaptive_num_examples": False,
        "min_similarity": -1.0,
        "leave_one_out": 0.0,
        "order": "similarity",
    },
    "examples": {"enabled": False},
}
"""Each prompt gets the k most similar examples; nothing is learnt or stored."""
