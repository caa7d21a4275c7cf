"""What a rating does in the running server: from the selection through the token to utilities."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from echolm import contracts
from echolm.internal_calls import SELECTION
from echolm.learning.event_log import START
from echolm.learning.feedback import RATING
from echolm.learning.request_statistics import (
    LEAST_SAMPLE,
    REQUEST_STATISTICS,
    RequestStatistics,
)
from echolm.learning.sqlite_log import SQLiteEventLog
from echolm.primitives import Retrieved
from echolm.retrieval.packed import unpack
from echolm.retrieval.record import SelectionRecord
from echolm.serving import Endpoints
from echolm.settings import Settings
from echolm_lab.tasks import Workload
from triton_calls import Caller, eventually, proof, samples, text

pytestmark = pytest.mark.timeout(240)

ITEM = Workload(seed=0).stream(1, seed=77)[0]
NO_STORE = {"cache_control": "no-store"}


def text_tensor(name: str, value: str) -> Any:
    tensor = grpcclient.InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_))
    return tensor


def retrieve(server: Endpoints, request: str, tenant: str) -> Retrieved:
    """What the retriever chooses for a request."""
    client, asked = (
        grpcclient.InferenceServerClient(server.grpc_url),
        text_tensor("text_input", request),
    )
    embedding = client.infer(contracts.TEXT_EMBEDDING.name, [asked]).as_numpy("embedding")
    vector = grpcclient.InferInput("embedding", list(embedding.shape), "FP32")
    vector.set_data_from_numpy(embedding)
    tensors = [asked, vector, text_tensor("tenant", tenant)]
    signed = proof(server, SELECTION, tensors)
    found = client.infer(contracts.RETRIEVER.name, tensors, parameters=signed)
    return unpack(found.as_numpy(contracts.RETRIEVED.name).item())


def utility(server: Endpoints, tenant: str) -> float:
    """The utility of ITEM's own interaction for ITEM."""
    for _ in range(20):  # now and then no example is tried
        found = retrieve(server, ITEM.text, tenant).examples
        if found:
            return found[0].utility
    raise AssertionError("the example is not used any more")


@pytest.fixture
def taught(server: Endpoints) -> str:
    """A tenant with one stored interaction, that of ITEM."""
    tenant = f"test-{uuid.uuid4().hex}"
    answer = Caller(server).ask(ITEM.text, tenant=tenant, llm="large_llm", max_tokens=400)
    assert text(answer, "finish_reason") == "stop", "else the answer is not admitted"
    assert eventually(lambda: retrieve(server, ITEM.text, tenant).examples)
    return tenant


def test_the_retriever_says_what_it_chose_and_how(server: Endpoints, taught: str) -> None:
    found = retrieve(server, ITEM.text, taught)
    record = SelectionRecord.load(found.selection)
    assert list(record.ids) == [example.id for example in found.examples]
    assert record.count == len(record.ids) <= len(record.ranked)
    assert retrieve(server, ITEM.text, f"{taught}x").selection == ""


def test_a_rating_brings_the_selection_into_the_log(
    server: Endpoints, server_settings: Settings, taught: str
) -> None:
    caller = Caller(server)
    small, large = (
        caller.ask(ITEM.text, tenant=taught, llm=llm, max_tokens=4, **NO_STORE)
        for llm in ("small_llm", "large_llm")
    )
    for answer in (small, large):
        assert caller.rate(answer["feedback_token"].item(), score=0.75)
    assert server_settings.event_log_path is not None
    log = SQLiteEventLog(server_settings.event_log_path)
    try:
        bodies = [
            event.body
            for event in log.read(START, 100_000)
            if event.kind == RATING and event.body["tenant"] == taught
        ]
    finally:
        log.close()
    selections = {body["llm"]: body["selection"] for body in bodies}
    record = SelectionRecord.load(selections["small_llm"])
    assert list(record.ids) == small["example_ids"][0].tolist() != []
    assert record.count is None, "the caller chose the LLM, so nothing follows for the number"
    assert selections["large_llm"] == ""


def test_ratings_change_the_utilities_of_the_running_server(server: Endpoints, taught: str) -> None:
    caller = Caller(server)

    def rate(score: float) -> None:
        answer = caller.ask(ITEM.text, tenant=taught, llm="small_llm", max_tokens=2, **NO_STORE)
        assert caller.rate(answer["feedback_token"].item(), score=score)

    def worth() -> float:
        """The utility; 0 while it is too low for the example to be used."""
        try:
            return utility(server, taught)
        except AssertionError:
            return 0.0

    before = utility(server, taught)

    def better() -> bool:
        rate(1.0)
        return worth() > before + 0.005

    # Better first: an example that is not used any more is not rated any more.
    assert eventually(better)
    high = worth()
    for _ in range(2):
        rate(0.0)
    assert eventually(lambda: worth() < high - 0.005)
    for _ in range(2):  # of examples as such something was learnt, too, which other tests use
        rate(1.0)
    assert samples(server, "echolm_utility_total") > 0


def test_an_answer_of_the_large_llm_changes_no_utility(server: Endpoints, taught: str) -> None:
    caller = Caller(server)
    answer = caller.ask(ITEM.text, tenant=taught, llm="large_llm", max_tokens=2, **NO_STORE)
    events = {"name": "echolm_learning_events_total", "model": "retriever"}
    before, learnt = utility(server, taught), samples(server, **events)
    assert caller.rate(answer["feedback_token"].item(), score=0.0)
    assert eventually(lambda: samples(server, **events) > learnt)
    assert utility(server, taught) == pytest.approx(before, abs=0.005)


def test_what_requests_look_like_is_measured_and_logged(
    server: Endpoints, server_settings: Settings
) -> None:
    for item in Workload(seed=0).stream(LEAST_SAMPLE, seed=78):
        retrieve(server, item.text, "public")
    assert server_settings.event_log_path is not None
    log = SQLiteEventLog(server_settings.event_log_path)

    def newest() -> list[RequestStatistics]:
        events = log.read(START, 100_000)
        return [RequestStatistics.read(e.body) for e in events if e.kind == REQUEST_STATISTICS]

    try:
        assert eventually(newest)
        assert newest()[-1].count >= LEAST_SAMPLE
    finally:
        log.close()


def test_a_prompt_with_a_known_prefix_counts_as_a_hit(server: Endpoints) -> None:
    caller, prompt = Caller(server), f"{uuid.uuid4().hex} " * 40
    options: dict[str, Any] = {"llm": "small_llm", "max_tokens": 1, "cache_control": "no-cache"}
    caller.ask(prompt, **options)
    name = "echolm_llm_prefix_hit_tokens_total"
    before = samples(server, name, model="small_llm")
    caller.ask(prompt, **options)
    assert eventually(lambda: samples(server, name, model="small_llm") > before + 100)
