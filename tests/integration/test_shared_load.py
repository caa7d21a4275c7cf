"""The routers ``echolm`` and ``echolm_stream`` are two processes and see each other's load."""

from __future__ import annotations

import pytest
import tritonclient.grpc as grpcclient
from echolm.serving import Endpoints
from triton_calls import eventually, inputs, samples, streams

pytestmark = pytest.mark.timeout(240)


def test_a_router_sees_what_the_other_one_has_in_flight(server: Endpoints) -> None:
    def seen(model: str) -> float:
        return samples(server, "echolm_load", llm="large_llm", model=model)

    def own(model: str) -> float:
        return samples(server, "echolm_in_flight", llm="large_llm", model=model)

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
        assert eventually(lambda: seen("echolm") > 0.2)
        assert own("echolm") == 0
    assert eventually(lambda: seen("echolm") < 0.05)
    assert eventually(lambda: own("echolm_stream") == 0)
