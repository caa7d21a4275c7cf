"""The models ``echolm`` and ``echolm_stream`` count as one load of the LLMs behind them."""

from __future__ import annotations

import pytest
import tritonclient.grpc as grpcclient
from echolm.serving import Endpoints
from triton_calls import eventually, inputs, samples, streams

pytestmark = pytest.mark.timeout(240)


def test_streams_count_in_the_load_by_which_unary_requests_are_routed(server: Endpoints) -> None:
    def load() -> float:
        return samples(server, "echolm_load", llm="large_llm", model="router")

    def in_flight() -> float:
        return samples(server, "echolm_in_flight", llm="large_llm", model="router")

    assert samples(server, "echolm_load_table_degraded") == 0
    with streams(server) as (client, _):
        for n in range(32):
            row = {
                "text_input": f"Tell story {n}",
                "max_tokens": 1_000,
                "llm": "large_llm",
                "temperature": 5.0,  # rambles, so that it does not end by itself
                "cache_control": "no-cache",
            }
            client.async_stream_infer("echolm_stream", inputs(grpcclient, [row]))
        # Two thirds of its capacity; the average takes a few seconds to get near, and a fast
        # machine may end some before.
        assert eventually(lambda: load() > 0.2)
    assert eventually(lambda: load() < 0.05)
    assert eventually(lambda: in_flight() == 0)
