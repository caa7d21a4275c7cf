"""The front door's library in a real Triton, in front of models that behave as each test says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from echolm.front_door.build import compile_front_door
from front_door import FrontDoor, plan, running_front_door, tensors
from front_door_calls import Later, Stream, http_stream, obeying, outcome, script, storm
from triton_calls import eventually, refusal, text

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("library") / "libtriton_echolm.so"
    compile_front_door(made)
    return made


@pytest.fixture(scope="module")
def door(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontDoor]:
    with running_front_door(tmp_path_factory.mktemp("door"), library) as running:
        yield running


def asked(door: FrontDoor, name: str) -> bool:
    """Whether `selection` was asked about a request, be it later."""
    return eventually(lambda: any(name in e["names"] for e in door.events("selection", "plan")))


def ended(door: FrontDoor, name: str) -> list[dict[str, Any]]:
    """The reports of the only id that a request of this name was given."""
    assert eventually(lambda: door.ids(name))
    (request_id,) = door.ids(name)
    return door.reports(request_id)


def test_a_request_is_answered_and_reported(door: FrontDoor) -> None:
    row = script({**plan(pieces=["hello ", "world"]), "example_ids": [4, 2], "solicit": True})
    answer = door.ask(row, max_tokens=7, stream=True)
    assert text(answer, "text_output") == "hello world"
    assert text(answer, "llm") == "alpha"
    assert answer["example_ids"].tolist() == [[4, 2]]
    assert answer["predicted_quality"].tolist() == [[0.5]]
    assert answer["solicit_feedback"].tolist() == [[True]]
    assert text(answer, "finish_reason") == "stop"
    assert (answer["num_input_tokens"].item(), answer["num_output_tokens"].item()) == (3, 2)
    (request_id,) = door.ids(row["name"])
    assert text(answer, "feedback_token") == f"token {request_id}"
    (report,) = door.reports(request_id)
    assert report["kind"] == 0
    assert (report["llm"], report["text"]) == ("alpha", "hello world")
    assert (report["finish_reason"], report["num_output_tokens"]) == ("stop", 2)
    assert report["first_token_s"] == -1.0
    assert 0 < report["selection_s"] < report["total_s"]
    assert 0 < report["generation_s"] < report["total_s"]
    (seen,) = (e for e in door.events("selection", "plan") if row["name"] in e["names"])
    assert seen["inputs"] == ["max_tokens", "text_input"]  # only echolm_stream streams


def test_only_the_outputs_that_are_asked_for(door: FrontDoor) -> None:
    wanted = [grpcclient.InferRequestedOutput("llm")]
    result = door.client().infer("echolm", tensors(script(plan())), outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["llm"]


def test_rows_are_answered_together(door: FrontDoor) -> None:
    rows = [
        script({**plan(pieces=[f"answer {n}"]), "example_ids": list(range(n))}) for n in range(5)
    ]
    rows.append(script({"stored": "from the store", "example_ids": [9]}))
    answer = door.ask(*rows)
    texts = [text(answer, "text_output", n) for n in range(6)]
    assert texts == [f"answer {n}" for n in range(5)] + ["from the store"]
    assert answer["example_ids"].shape == (6, 4)
    assert answer["example_ids"][2].tolist() == [0, 1, -1, -1]
    assert answer["num_output_tokens"][:, 0].tolist() == [1, 1, 1, 1, 1, 0]
    assert text(answer, "finish_reason", 5) == "stop"
    for row in rows:
        assert [report["kind"] for report in ended(door, row["name"])] == [0]


def test_a_row_that_fails_for_good_fails_the_request(door: FrontDoor) -> None:
    rows = [script(plan(hang=0)), script(plan(fail=0))]
    with door.shut():
        assert "no LLM answered: out of memory" in refusal(lambda: door.ask(*rows))
        (request_id,) = door.ids(rows[0]["name"])
        assert eventually(lambda: door.events("alpha", "cancelled", request_id=f"{request_id}-0"))
    assert [(r["kind"], r["reason"]) for r in door.reports(request_id)] == [(2, "error")]
    # router knows of the other that no LLM answered.
    reports = door.events("router", "report", request_id=door.ids(rows[1]["name"])[0])
    assert [report["kind"] for report in reports] == [1]


def test_json_arrays_go_out_with_the_pieces_of_a_stream(door: FrontDoor) -> None:
    script_of = plan(pieces=["one ", "", "", "two", ""], json=["[1,2]", "[3]", "[]", "", "[4]"])
    settings = {"stream_interval_ms": 0}
    row = script({**script_of, "rules": {"logprobs": 4}, "settings": settings})
    responses = Stream(door, row).responses()
    found = [(r.as_numpy("text_output").item(), r.as_numpy("logprobs")) for r in responses]
    assert [(text, None if j is None else j.item()) for text, j in found] == [
        (b"one ", b"[1,2]"),
        (b"", b"[3]"),
        (b"two", None),
        (b"", b"[4]"),
        (b"", b""),
    ]


def test_json_arrays_gather_as_text_does(door: FrontDoor) -> None:
    script_of = plan(pieces=["a", "b", "c"], json=["[1]", "[2,3]", "[4]"])
    settings = {"stream_interval_ms": 10_000}
    row = script({**script_of, "rules": {"logprobs": 4}, "settings": settings})
    got = Stream(door, row).responses()
    assert [r.as_numpy("logprobs").item() for r in got] == [b"[1]", b"[2,3,4]", b""]
    assert [r.as_numpy("text_output").item() for r in got] == [b"a", b"bc", b""]


def test_outputs_that_some_rows_lack_are_empty_there(door: FrontDoor) -> None:
    first = script({**plan(json=["[1]"]), "rules": {"logprobs": 4}})
    answer = door.ask(script(plan()), first, script(plan(json=["[1]"])))
    assert answer["logprobs"][:, 0].tolist() == [b"", b"[1]", b""]


def test_a_stream_of_which_json_was_sent_is_not_begun_anew(door: FrontDoor) -> None:
    broken = {**plan(pieces=["", ""], json=["[1]", ""], fail=1), "rules": {"logprobs": 4}}
    stream = Stream(door, script(broken, plan("beta")))
    assert stream.next().as_numpy("logprobs").item() == b"[1]"
    assert "alpha failed after part of the answer was sent" in refusal(stream.next)


def test_echolm_stream_takes_one_row(door: FrontDoor) -> None:
    error = refusal(Stream(door, script(), script()).next)
    assert "[invalid_request] batch: expected one request for echolm_stream, got 2" in error


def test_a_stream_has_pieces_and_a_last_response(door: FrontDoor) -> None:
    row = script(plan(pieces=["one ", "two ", "three"], delay_s=0.01))
    pieces, last = Stream(door, row).rest()
    assert pieces[0] == "one "
    assert "".join(pieces) == "one two three"
    assert last.as_numpy("text_output").item() == b""
    assert last.as_numpy("llm").item() == b"alpha"
    assert last.as_numpy("num_output_tokens").item() == 3
    (report,) = ended(door, row["name"])
    assert report["text"] == "one two three"
    assert 0 < report["first_token_s"] <= report["total_s"]


def test_pieces_gather(door: FrontDoor) -> None:
    with obeying(door, stream_interval_ms=60_000.0):
        settings = {"settings": {"stream_interval_ms": 60_000.0}}
        row = script({**plan(pieces=[f"{n} " for n in range(20)]), **settings})
        pieces, _ = Stream(door, row).rest()
    assert pieces == ["0 ", "".join(f"{n} " for n in range(1, 20))]


def test_pieces_do_not_gather_with_an_interval_of_zero(door: FrontDoor) -> None:
    with obeying(door, stream_interval_ms=0.0):
        row = script({**plan(pieces=list("abcdef")), "settings": {"stream_interval_ms": 0.0}})
        pieces, _ = Stream(door, row).rest()
    assert pieces == list("abcdef")


def test_a_gathered_piece_goes_out_when_its_time_has_come(door: FrontDoor) -> None:
    with door.shut():
        stream = Stream(door, script(plan(pieces=["a", "b", "c"], hang=2)))
        read = ""
        while read != "ab":
            read += stream.next().as_numpy("text_output").item().decode()
    assert "".join(stream.rest()[0]) == "c"


def test_a_stream_of_one_response(door: FrontDoor) -> None:
    pieces, last = Stream(door, script(plan(pieces=["a", "b"])), stream=False).rest()
    assert pieces == []
    assert last.as_numpy("text_output").item() == b"ab"


def test_a_stored_answer_is_the_only_piece(door: FrontDoor) -> None:
    row = script({"stored": "as before"})
    pieces, last = Stream(door, row).rest()
    assert pieces == ["as before"]
    assert last.as_numpy("text_output").item() == b""
    assert [report["text"] for report in ended(door, row["name"])] == ["as before"]


def test_the_stream_interval_goes_to_an_llm_that_takes_it(door: FrontDoor) -> None:
    rows = [script({**plan(), "gathers": gathers}) for gathers in (False, True)]
    for row, expected in zip(rows, ({}, {"stream_interval_ms": 40.0}), strict=True):
        Stream(door, row).rest()
        (request_id,) = door.ids(row["name"])
        (begun,) = door.events("alpha", "begin", request_id=f"{request_id}-0")
        assert begun["parameters"] == expected


def waiting(door: FrontDoor, rows: list[dict[str, Any]]) -> list[Later]:
    """Requests that wait for their selection behind one that hangs.

    The last of ``rows`` is refused, which shows that the others have arrived.
    """
    first = script(plan(), selection="hang")
    later = [Later(door, first)]
    assert asked(door, first["name"])
    later += [Later(door, row) for row in rows]
    assert eventually(lambda: door.events("router", "report", reason="overload"))
    return later


def test_requests_that_wait_are_selected_for_together(door: FrontDoor) -> None:
    limits = {"selections_in_flight": 1, "max_in_flight": 6, "selection_timeout_ms": 60_000}
    rows = [script({**plan(), "settings": limits}) for _ in range(6)]
    with obeying(door, **limits):
        with door.shut():
            later = waiting(door, rows)
        errors = list(filter(None, (outcome(one.result) for one in later)))
    assert len(errors) == 1
    assert "[unavailable] echolm: 6 requests are in flight already; try again later" in errors[0]
    together = [e["names"] for e in door.events("selection", "plan") if len(e["names"]) > 1][-1]
    assert len(together) == 5
    assert set(together) < {row["name"] for row in rows}
    overload = door.events("router", "report", reason="overload")
    assert [(report["kind"], report["request_id"]) for report in overload] == [(2, "")]


def test_requests_with_other_inputs_are_not_merged(door: FrontDoor) -> None:
    with obeying(door, selections_in_flight=1, selection_timeout_ms=60_000):
        with door.shut():
            hanging = Later(door, script(plan(), selection="hang"))
            later = [
                Later(door, script(plan()), stop_words=["a"]),
                Later(door, script(plan()), stop_words=["a", "b"]),
                Later(door, script(plan()), temperature=0.5),
            ]
        assert [outcome(one.result) for one in (hanging, *later)] == [""] * 4


def test_a_named_llm_without_cache_needs_no_selection(door: FrontDoor) -> None:
    direct, cached, auto = (script(plan()) for _ in range(3))
    door.ask(direct, llm="alpha", cache_control="no-cache")
    door.ask(cached, llm="alpha", cache_control="no-store")
    door.ask(auto, llm="auto", cache_control="no-cache")
    planner = {e["names"][0]: e["model"] for e in door.events(event="plan")}
    assert [planner[row["name"]] for row in (direct, cached, auto)] == [
        "router",
        "selection",
        "selection",
    ]


def test_another_llm_answers_where_one_fails(door: FrontDoor) -> None:
    row = script(
        plan("alpha", fail=0, status="INVALID_ARG", message="too long"),
        plan("unary", fail=0),
        plan("beta", pieces=["from beta"]),
    )
    answer = door.ask(row)
    assert text(answer, "text_output") == "from beta"
    assert text(answer, "llm") == "beta"
    assert text(answer, "degraded") == "unary unavailable"
    reports = ended(door, row["name"])
    assert [(r["kind"], r["llm"], r["refused"]) for r in reports] == [
        (1, "alpha", 1),
        (1, "unary", 0),
        (0, "beta", 0),
    ]
    assert "too long" in reports[0]["reason"]


def test_a_stream_falls_back_before_its_first_piece(door: FrontDoor) -> None:
    row = script(plan("alpha", fail=0), plan("beta", pieces=["from ", "beta"]))
    pieces, last = Stream(door, row).rest()
    assert "".join(pieces) == "from beta"
    assert last.as_numpy("llm").item() == b"beta"


def test_a_stream_that_breaks_says_so(door: FrontDoor) -> None:
    with obeying(door, stream_interval_ms=60_000.0):
        slow = {"settings": {"stream_interval_ms": 60_000.0}}
        row = script({**plan("alpha", pieces=["a", "b", "c"], fail=2), **slow}, plan("beta"))
        stream = Stream(door, row)
        pieces = [stream.next().as_numpy("text_output").item().decode() for _ in range(2)]
        error = refusal(stream.next)
    assert pieces == ["a", "b"]  # what had gathered comes before the error
    assert "[unavailable] alpha failed after part of the answer was sent" in error
    assert [(r["kind"], r["reason"]) for r in ended(door, row["name"])] == [(2, "stream_broken")]


def test_an_llm_that_says_nothing_has_failed(door: FrontDoor) -> None:
    row = script(plan("alpha", silent=True), plan("beta"))
    assert text(door.ask(row), "llm") == "beta"
    assert ended(door, row["name"])[0]["reason"] == "alpha: ended without an answer"


def test_an_llm_that_is_not_loaded_has_failed(door: FrontDoor) -> None:
    row = script(plan("gamma"), plan("beta"))
    assert text(door.ask(row), "llm") == "beta"
    assert "gamma" in ended(door, row["name"])[0]["reason"]


def test_an_llm_that_takes_too_long_has_failed(door: FrontDoor) -> None:
    row = script({**plan("alpha", hang=0), "settings": {"request_timeout_ms": 100}}, plan("beta"))
    with door.shut():
        assert text(door.ask(row), "llm") == "beta"
        (request_id,) = door.ids(row["name"])
        assert eventually(lambda: door.events("alpha", "cancelled", request_id=f"{request_id}-0"))
    assert [(r["kind"], r["reason"]) for r in door.reports(request_id)] == [(1, "timeout"), (0, "")]


def test_no_router_for_the_next_plan(door: FrontDoor) -> None:
    row = script(plan("alpha", fail=0), {**plan("beta"), "router": "error"})
    assert "[unavailable] router: no router today" in refusal(lambda: door.ask(row))
    reports = ended(door, row["name"])
    assert [(r["kind"], r["reason"]) for r in reports[1:]] == [(2, "error")]


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (1, "StatusCode.INTERNAL"),
        (3, "StatusCode.INVALID_ARGUMENT"),
        (4, "StatusCode.UNAVAILABLE"),
        (7, "StatusCode.CANCELLED"),
    ],
)
def test_a_refusal_has_the_status_that_the_plan_says(
    door: FrontDoor, number: int, status: str
) -> None:
    row = script({"refusal": "[code] message", "status": number})
    assert refusal(lambda: door.ask(row)) == f"{status} [code] message"
    assert refusal(lambda: door.ask(row, script(plan()))) == f"{status} [code] message"


def test_rows_beside_a_refused_one_are_reported(door: FrontDoor) -> None:
    other = script(plan())
    refusal(lambda: door.ask(script({"refusal": "[invalid_request] no", "status": 3}), other))
    assert [(r["kind"], r["reason"]) for r in ended(door, other["name"])] == [(2, "error")]


def test_router_alone_plans_when_selection_fails(door: FrontDoor) -> None:
    rows = [script(plan(), selection="error"), script(plan())]
    answer = door.ask(*rows)
    assert text(answer, "degraded") == text(answer, "degraded", 1) == "retrieval unavailable"
    for row in rows:
        assert [r["kind"] for r in ended(door, row["name"])] == [0]


def test_router_alone_plans_when_selection_hangs(door: FrontDoor) -> None:
    row = script(plan(), selection="hang")
    with obeying(door, selection_timeout_ms=200):
        with door.shut():
            assert text(door.ask(row), "degraded") == "retrieval unavailable"
        assert eventually(lambda: len(door.ids(row["name"])) == 2)
    (late,) = (e["request_id"] for e in door.events("selection", "id", name=row["name"]))
    (used,) = (e["request_id"] for e in door.events("router", "id", name=row["name"]))
    assert [(r["kind"], r["reason"]) for r in door.reports(late)] == [(2, "late")]
    assert [r["kind"] for r in door.reports(used)] == [0]


def test_requests_pass_by_a_selection_that_hangs_until_it_answers_again(door: FrontDoor) -> None:
    hanging = script(plan(), selection="hang")
    long = {"selection_timeout_ms": 60_000}
    others = [script({**plan(), "settings": long}, selection="hang") for _ in range(4)]
    with door.shut(), obeying(door, selection_timeout_ms=200):
        # The first waits in vain; after it each would wait for a minute.
        for row in (hanging, *others):
            assert text(door.ask(row), "degraded") == "retrieval unavailable"
    assert eventually(lambda: text(door.ask(script(plan())), "degraded") == "")
    ids = {id for row in (hanging, *others) for id in door.ids(row["name"])}
    assert len(ids) == 6  # the first was selected for, too, when that answered at last
    assert eventually(lambda: ids <= door.ends().keys())
    assert {door.ends()[id] for id in ids} == {1}


def test_no_selection_and_no_router(door: FrontDoor) -> None:
    row = script(plan(), selection="error", router="error")
    expected = "StatusCode.UNAVAILABLE [unavailable] router: no router today"
    assert refusal(lambda: door.ask(row)) == expected


def test_router_hangs_where_selection_failed(door: FrontDoor) -> None:
    row = script(plan(), selection="error", router="hang")
    with obeying(door, selection_timeout_ms=200):
        with door.shut():
            error = refusal(lambda: door.ask(row))
        assert "StatusCode.UNAVAILABLE [unavailable] router: no answer within 200 ms" in error
        assert [(r["kind"], r["reason"]) for r in ended(door, row["name"])] == [(2, "late")]


@pytest.mark.parametrize("cut", [0, 1, 39, 50, 80, 100, 200, 400])
def test_a_plan_that_is_cut_off(door: FrontDoor, cut: int) -> None:
    row = script({**plan(), "cut": cut})
    error = refusal(lambda: door.ask(row))
    assert error.startswith("StatusCode.INTERNAL [internal] packed value: expected")
    if cut >= 80:  # the request id was read
        assert [(r["kind"], r["reason"]) for r in ended(door, row["name"])] == [(2, "error")]


def test_an_output_that_is_missing(door: FrontDoor) -> None:
    row = script(plan(), selection="nothing")
    error = refusal(lambda: door.ask(row))
    assert error.startswith("StatusCode.INTERNAL [internal] packed value: expected")


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        (["one tw", "o thr", "ee"], ["two"], "one "),
        (["one", " two", " three"], ["four", "two t"], "one "),
        (["a", "b", "a", "b", "c"], ["abc"], "ab"),
        (["grüß", "e au", "s Köln"], ["üße aus"], "gr"),
        (["日本", "語の", "文"], ["語の文"], "日本"),
        (["one ", "tw"], ["two"], "one tw"),
        (["", "x"], ["never"], "x"),
        (["stop"], ["stop"], ""),
    ],
)
def test_stop_words_are_cut_at(
    door: FrontDoor, pieces: list[str], stop: list[str], expected: str
) -> None:
    row = script({**plan(pieces=pieces, reason="length"), "stop": stop})
    streamed, last = Stream(door, row).rest()
    assert "".join(streamed) == expected
    reason = "stop" if expected != "".join(pieces) else "length"
    assert last.as_numpy("finish_reason").item().decode() == reason
    answer = door.ask(row)
    assert text(answer, "text_output") == expected
    assert text(answer, "finish_reason") == reason


def test_an_llm_is_cancelled_at_a_stop_word(door: FrontDoor) -> None:
    row = script({**plan(pieces=["one", "two", "three"], hang=2), "stop": ["two"]})
    with door.shut():
        pieces, _ = Stream(door, row).rest()
        (request_id,) = door.ids(row["name"])
        assert eventually(lambda: door.events("alpha", "cancelled", request_id=f"{request_id}-0"))
    assert pieces == ["one"]
    assert [r["kind"] for r in door.reports(request_id)] == [0]


def test_text_that_repeats_and_is_incomplete(door: FrontDoor) -> None:
    wholes = ["K", "K\ufffd", "Kö", "Köln \ufffd\ufffd", "Köln 日", "Köln 日\ufffd"]
    row = script({**plan(pieces=wholes, cumulative=True), "cumulative": True})
    pieces, _ = Stream(door, row).rest()
    assert "".join(pieces) == "Köln 日\ufffd"
    assert "\ufffd" not in "".join(pieces[:-1])
    assert text(door.ask(row), "text_output") == "Köln 日\ufffd"


@pytest.mark.parametrize(("max_tokens", "reason"), [(4, "length"), (5, "stop")])
def test_counts_that_are_of_one_response_are_added(
    door: FrontDoor, max_tokens: int, reason: str
) -> None:
    told = {"rules": {"num_output_tokens": 3}, "token_limit": max_tokens}
    made = {**plan(pieces=list("abcd"), adds=True, reason=""), **told}
    _, last = Stream(door, script(made)).rest()
    assert last.as_numpy("num_output_tokens").item() == 4
    assert last.as_numpy("finish_reason").item().decode() == reason


@pytest.mark.parametrize(
    ("rule", "expected"), [(0, [9]), (1, [5]), (2, [9, 3, 4, 5])], ids=["kept", "last", "appended"]
)
def test_an_output_of_the_llm_becomes_the_clients_as_the_plan_says(
    door: FrontDoor, rule: int, expected: list[int]
) -> None:
    made = {**plan(pieces=["a", "b"], ids=[[3, 4], [5]]), "example_ids": [9]}
    _, last = Stream(door, script({**made, "rules": {"example_ids": rule}})).rest()
    assert last.as_numpy("example_ids").tolist() == [expected]
    assert last.as_numpy("text_output").item() == b""


def test_an_llm_that_counts_nothing(door: FrontDoor) -> None:
    answer = door.ask(script({**plan(counts=[], reason=""), "token_limit": 1}))
    assert answer["num_input_tokens"].item() == answer["num_output_tokens"].item() == -1
    assert text(answer, "finish_reason") == ""


def test_a_long_text(door: FrontDoor) -> None:
    long = "0123456789" * 300_000
    row = script(plan(pieces=[long]))
    assert text(door.ask(row), "text_output") == long
    assert [len(r["text"]) for r in ended(door, row["name"])] == [len(long)]


def cancelled(door: FrontDoor, name: str) -> bool:
    (request_id,) = door.ids(name)
    assert eventually(lambda: door.events("alpha", "cancelled", request_id=f"{request_id}-0"))
    return [(r["kind"], r["reason"]) for r in door.reports(request_id)] == [(2, "cancelled")]


def begun(door: FrontDoor, name: str) -> bool:
    return eventually(lambda: door.ids(name)) and eventually(
        lambda: door.events(event="begin", request_id=f"{door.ids(name)[0]}-0")
    )


def test_a_client_that_cancels_its_request(door: FrontDoor) -> None:
    row = script(plan(hang=0))
    with door.shut():
        later = Later(door, row)
        assert begun(door, row["name"])
        later.cancel()
        assert cancelled(door, row["name"])


def test_a_client_that_leaves_its_stream(door: FrontDoor) -> None:
    row = script(plan(pieces=["a", "b"], hang=1))
    with door.shut():
        stream = Stream(door, row)
        stream.next()
        stream.leave()
        assert cancelled(door, row["name"])


def test_a_client_that_leaves_gets_nothing_of_what_gathered(door: FrontDoor) -> None:
    script_of = plan(pieces=["a", "b", "c"], json=["[1]", "[2]", "[3]"], hang=2)
    settings = {"stream_interval_ms": 60_000}
    row = script({**script_of, "rules": {"logprobs": 4}, "settings": settings})
    with door.shut():
        stream = Stream(door, row)
        assert stream.next().as_numpy("logprobs").item() == b"[1]"
        stream.leave()
        assert cancelled(door, row["name"])
    assert door.triton.poll() is None


def test_a_client_that_leaves_an_http_stream(door: FrontDoor) -> None:
    row = script(plan(pieces=["a", "b"], hang=1))
    with door.shut():
        with http_stream(door, row) as connection:
            response = connection.getresponse()
            assert b'"a"' in response.readline()
            response.close()
        assert cancelled(door, row["name"])


def failures(door: FrontDoor) -> int:
    """Requests to ``echolm`` that were not answered, by Triton's statistics."""
    statistics = door.client().get_inference_statistics("echolm")
    return int(statistics.model_stats[0].inference_stats.fail.count)


def test_a_client_that_leaves_before_its_plan(door: FrontDoor) -> None:
    row = script(plan(), selection="hang")
    with door.shut():
        later = Later(door, row)
        assert asked(door, row["name"])
        before = failures(door)
        later.cancel()
        assert "CANCELLED" in refusal(later.result)
        assert eventually(lambda: failures(door) > before)
    assert [(r["kind"], r["reason"]) for r in ended(door, row["name"])] == [(2, "cancelled")]


def test_a_storm_of_cancelled_requests(door: FrontDoor) -> None:
    storm(door, 400, seed=1)
    assert door.triton.poll() is None


def test_a_front_door_that_is_unloaded_answers_what_it_has(door: FrontDoor) -> None:
    row = script(plan(hang=0, pieces=["still there"]))
    client = door.client()
    with door.shut():
        later = Later(door, row)
        assert begun(door, row["name"])
        door.unload("echolm")
    assert later.result().as_numpy("text_output").item() == b"still there"
    assert [r["kind"] for r in ended(door, row["name"])] == [0]
    assert eventually(lambda: not client.is_model_ready("echolm"))
    door.load("echolm")
    assert text(door.ask(script(plan())), "text_output") == "hello"


def test_models_behind_the_front_door_come_and_go(door: FrontDoor) -> None:
    client = door.client()
    for model in ("alpha", "selection", "router"):
        door.unload(model)
        assert eventually(lambda model=model: not client.is_model_ready(model))
        if model == "router":
            assert "[unavailable] router: " in refusal(lambda: door.ask(script(plan("beta"))))
        else:
            door.ask(script(plan("alpha"), plan("beta")))
    for model in ("alpha", "selection", "router"):
        door.load(model)
    assert text(door.ask(script(plan("alpha"))), "llm") == "alpha"


def test_what_a_lost_llm_had_in_flight_another_one_answers(door: FrontDoor) -> None:
    row = script(plan("alpha", hang=0), plan("beta", pieces=["instead"]))
    with door.shut():
        later = Later(door, row)
        assert begun(door, row["name"])
        door.unload("alpha")
        # Still within: alpha itself says nothing.
        assert later.result().as_numpy("text_output").item() == b"instead"
    door.load("alpha")
    failed, answered = ended(door, row["name"])
    assert (failed["kind"], failed["reason"]) == (1, "alpha is being loaded anew")
    assert (answered["kind"], answered["llm"]) == (0, "beta")


def test_a_lost_selection_is_not_waited_for_and_the_next_one_is_asked(door: FrontDoor) -> None:
    row, after = script(plan(), selection="hang"), script(plan())
    with obeying(door, selection_timeout_ms=60_000), door.shut():
        later = Later(door, row)
        assert asked(door, row["name"])
        door.unload("planner")
        assert later.result().as_numpy("llm").item() == b"alpha"
        door.load("planner")
        assert text(door.ask(after), "llm") == "alpha"
    planner = [e["model"] for e in door.events(event="plan") if after["name"] in e["names"]]
    assert planner == ["selection"]


def test_rows_count_as_requests_in_flight(door: FrontDoor) -> None:
    settings = {"settings": {"max_in_flight": 3}}
    two = [script({**plan(hang=0), **settings}) for _ in range(2)]
    with obeying(door, max_in_flight=3), door.shut():
        later = Later(door, *two)
        assert begun(door, two[1]["name"])
        got = refusal(lambda: door.ask(*(script(plan()) for _ in range(2))))
        assert "UNAVAILABLE [unavailable] echolm: 2 requests are in flight already" in got
        door.ask(script({**plan(), **settings}))
        got = refusal(lambda: door.ask(*(script(plan()) for _ in range(4))))
        assert "INVALID_ARGUMENT [invalid_request] batch: expected at most 3 rows" in got
    assert later.result().as_numpy("llm").size == 2


def test_a_server_that_stops_with_requests_in_flight(library: Path, tmp_path: Path) -> None:
    with running_front_door(tmp_path, library) as door, door.shut():
        rows = [script(plan(pieces=["a", "b"], hang=1)) for _ in range(4)]
        streams = [Stream(door, row) for row in rows]
        later = Later(door, script(plan(), selection="hang"))
        for stream in streams:
            stream.next()
        door.triton.stop()
        for stream in streams:
            stream.leave()
        outcome(later.result)
        assert not re.search(r"Signal \((?!15)|Segmentation|terminate", door.log_file.read_text())


def test_numbers_are_exact(door: FrontDoor) -> None:
    row = script({**plan(), "quality": 0.25, "example_ids": [2**62, 0]})
    answer = door.ask(row)
    assert answer["predicted_quality"].dtype == np.float32
    assert answer["predicted_quality"].item() == 0.25
    assert answer["example_ids"].tolist() == [[2**62, 0]]
