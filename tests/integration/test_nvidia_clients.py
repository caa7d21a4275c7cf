"""What clients of NVIDIA's models send, through ``echolm`` as it comes.

The payloads are those of

- TensorRT-LLM's ``end_to_end_grpc_client.py`` (NVIDIA/TensorRT-LLM, ``triton_backend``),
- genai-perf's ``tensorrtllm`` format over KServe (triton-inference-server/perf_analyzer),
- Triton's OpenAI frontend for TensorRT-LLM (triton-inference-server/server, ``python/openai``),
- LiteLLM's Triton provider (BerriAI/litellm), and the ``curl`` of NVIDIA's documentation.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from echolm import contracts
from echolm.serving import Endpoints
from numpy.typing import NDArray
from triton_calls import Caller, post, proof, refusal, streams, text
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

pytestmark = pytest.mark.timeout(240)

PROMPT = "shrink our energy cache cluster at bomkum-x80"
QUIET: dict[str, Any] = {"cache_control": "no-cache"}


def tensors(arrays: dict[str, NDArray[Any]], kind: Any = grpcclient) -> list[Any]:
    made = []
    for name, array in arrays.items():
        tensor = kind.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def streamed(
    server: Endpoints, model: str, arrays: dict[str, NDArray[Any]], outputs: Sequence[str]
) -> list[Any]:
    """All results of a request over gRPC's stream, as NVIDIA's clients make them."""
    with streams(server) as (client, arrived):
        wanted = [grpcclient.InferRequestedOutput(name) for name in outputs]
        made = tensors(arrays)
        signed = {} if model.startswith("echolm") else proof(server, model, made)
        client.async_stream_infer(model, made, outputs=wanted, parameters=signed)
        first = arrived.get(timeout=60)
        client.stop_stream()
        results = [first]
        while True:
            try:
                results.append(arrived.get_nowait())
            except queue.Empty:
                break
    errors = [error for _, error in results if error is not None]
    assert not errors, errors
    return [result for result, _ in results]


def end_to_end(prompt: str, **options: Any) -> dict[str, NDArray[Any]]:
    """``prepare_inputs`` with the client's defaults, and as its options change them."""
    inputs: dict[str, NDArray[Any]] = {
        "text_input": np.array([[prompt]]).astype(object),
        "max_tokens": np.array([[12]], dtype=np.int32),
        "stream": np.array([[False]], dtype=bool),
        "beam_width": np.array([[1]], dtype=np.int32),
        "temperature": np.array([[1.0]], dtype=np.float32),
        "exclude_input_in_output": np.array([[False]], dtype=bool),
    }
    return {**inputs, **options}


def test_the_end_to_end_client_with_its_defaults(server: Endpoints) -> None:
    [result] = streamed(server, "echolm", end_to_end(PROMPT), ["text_output"])
    assert result.as_numpy("text_output")[0][0].decode()
    # What it looks for besides, where it did not ask for it.
    for name in ("batch_index", "sequence_index", "output_log_probs", "context_logits"):
        assert result.as_numpy(name) is None


def test_the_end_to_end_client_with_its_options(server: Endpoints) -> None:
    options = {
        "num_return_sequences": np.array([[1]], dtype=np.int32),
        "stop_words": np.array([["never in there", "nor this"]], dtype=object),
        "repetition_penalty": np.array([[1.1]], dtype=np.float32),
        "presence_penalty": np.array([[0.1]], dtype=np.float32),
        "frequency_penalty": np.array([[0.1]], dtype=np.float32),
        "return_log_probs": np.array([[True]], dtype=bool),
        "end_id": np.array([[2]], dtype=np.int32),
        "pad_id": np.array([[2]], dtype=np.int32),
    }
    outputs = ["text_output", "cum_log_probs", "output_log_probs"]
    [result] = streamed(server, "echolm", end_to_end(PROMPT, **options), outputs)
    assert result.as_numpy("text_output")[0][0]
    each = result.as_numpy("output_log_probs")
    assert each.shape[:2] == (1, 1)
    assert each.size > 0
    assert result.as_numpy("cum_log_probs") == pytest.approx(each.sum(axis=2), abs=1e-3)


def test_log_probabilities_of_a_stream_come_with_its_end(server: Endpoints) -> None:
    asked = {"stream": np.array([[True]]), "return_log_probs": np.array([[True]])}
    outputs = ["text_output", "output_log_probs", "cum_log_probs", "num_output_tokens"]
    *pieces, last = streamed(server, "echolm_stream", end_to_end(PROMPT, **asked), outputs)
    assert pieces
    assert all(piece.as_numpy("output_log_probs") is None for piece in pieces)
    each = last.as_numpy("output_log_probs")
    assert each.size == last.as_numpy("num_output_tokens").item()
    assert last.as_numpy("cum_log_probs").item() == pytest.approx(each.sum(), abs=1e-3)


def test_rows_that_ask_for_log_probabilities_stand_beside_rows_that_do_not(
    server: Endpoints,
) -> None:
    rows = [end_to_end(PROMPT), end_to_end(PROMPT)]
    arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    arrays["return_log_probs"] = np.array([[False], [True]])
    [result] = streamed(server, "echolm", arrays, ["text_output", "cum_log_probs"])
    found = result.as_numpy("cum_log_probs")
    assert found.shape == (2, 1)
    assert np.isnan(found[0, 0])
    assert found[1, 0] <= 0


def test_the_end_to_end_client_in_pieces(server: Endpoints) -> None:
    arrays = end_to_end(PROMPT, stream=np.array([[True]]))
    results = streamed(server, "echolm_stream", arrays, ["text_output"])
    pieces = [result.as_numpy("text_output") for result in results]
    assert "".join(piece[0][0].decode() for piece in pieces if piece is not None)


def test_rows_of_a_batch_are_padded_to_one_length(server: Endpoints) -> None:
    rows = [end_to_end(PROMPT), end_to_end("bounce the queue of catering no 693 in eu-mamfe-4")]
    arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    arrays["bad_words"] = np.array([[""], [""]], dtype=object)
    arrays["stop_words"] = np.array([["x!y", ""], ["", ""]], dtype=object)
    arrays["embedding_bias_words"] = np.array([[""], [""]], dtype=object)
    arrays["embedding_bias_weights"] = np.zeros((2, 1), dtype=np.float32)
    result = grpcclient.InferenceServerClient(server.grpc_url).infer("echolm", tensors(arrays))
    assert result.as_numpy("text_output").shape == (2, 1)


@pytest.mark.parametrize("kind", [grpcclient, httpclient], ids=["grpc", "http"])
def test_tensors_without_elements_are_nothing(server: Endpoints, kind: Any) -> None:
    arrays: dict[str, NDArray[Any]] = {
        **end_to_end(PROMPT),
        "embedding_bias_weights": np.zeros((1, 0), np.float32),
        "prompt_embedding_table": np.zeros((1, 0, 8), np.float16),
        "lora_config": np.zeros((1, 0, 3), np.int32),
        "image_input": np.zeros((1, 0, 3, 2, 2), np.float16),
    }
    if kind is grpcclient:  # the client's own HTTP code fails on an empty text tensor
        arrays["bad_words"] = np.zeros((1, 0), dtype=object)
    url = server.grpc_url if kind is grpcclient else server.http_address
    result = kind.InferenceServerClient(url).infer("echolm", tensors(arrays, kind))
    assert result.as_numpy("text_output").shape == (1, 1)


def test_genai_perf_over_kserve_with_as_many_tokens_as_it_wants(server: Endpoints) -> None:
    payload: dict[str, NDArray[Any]] = {
        "text_input": np.array([[PROMPT]], dtype=object),
        "max_tokens": np.array([[40]], dtype=np.int32),
        "min_length": np.array([[40]], dtype=np.int32),
        "exclude_input_in_output": np.array([[True]]),
        "stream": np.array([[True]]),
    }
    outputs = [tensor.name for tensor in contracts.ECHOLM_STREAM.outputs]
    last = streamed(server, "echolm_stream", payload, outputs)
    counts = [r.as_numpy("num_output_tokens") for r in last]
    assert [int(c.item()) for c in counts if c is not None] == [40]


@pytest.mark.parametrize("model", ["echolm", "echolm_stream"])
def test_tritons_openai_frontend(server: Endpoints, model: str) -> None:
    request: dict[str, NDArray[Any]] = {
        "text_input": np.array([[PROMPT]], dtype=object),
        "stream": np.bool_([[model == "echolm_stream"]]),  # type: ignore[dict-item]
        "max_tokens": np.int32([[12]]),  # type: ignore[dict-item]
        "stop_words": np.array([["\n\n\n"]], dtype=object),
        "top_p": np.float32([[1.0]]),  # type: ignore[dict-item]
        "frequency_penalty": np.float32([[0.0]]),  # type: ignore[dict-item]
        "presence_penalty": np.float32([[0.0]]),  # type: ignore[dict-item]
        "seed": np.uint64([[7]]),  # type: ignore[dict-item]
        "temperature": np.float32([[1.0]]),  # type: ignore[dict-item]
        "exclude_input_in_output": np.bool_([[True]]),  # type: ignore[dict-item]
        "return_num_input_tokens": np.bool_([[True]]),  # type: ignore[dict-item]
        "return_num_output_tokens": np.bool_([[True]]),  # type: ignore[dict-item]
    }
    outputs = ["text_output", "num_input_tokens", "num_output_tokens"]
    last = streamed(server, model, request, outputs)
    counts = [r.as_numpy("num_output_tokens") for r in last]
    assert [int(c.item()) > 0 for c in counts if c is not None] == [True]


def test_its_frontends_json_schema_is_refused_by_name_where_no_llm_can_keep_to_it(
    server: Endpoints,
) -> None:
    arrays = end_to_end(
        PROMPT,
        guided_decoding_guide_type=np.array([["json_schema"]], dtype=object),
        guided_decoding_guide=np.array([["{}"]], dtype=object),
    )
    client = grpcclient.InferenceServerClient(server.grpc_url)
    said = refusal(lambda: client.infer("echolm", tensors(arrays)))
    assert "INVALID_ARGUMENT" in said
    assert "guided_decoding_guide_type: expected nothing, since no LLM here can take it" in said


@pytest.mark.parametrize("path", ["echolm/generate", "echolm_stream/generate_stream"])
def test_litellms_triton_provider(server: Endpoints, path: str) -> None:
    body = {
        "text_input": PROMPT,
        "parameters": {"max_tokens": 12, "bad_words": [""], "stop_words": [""]},
        "stream": path.endswith("_stream"),
    }
    status, page = post(server, path, body)
    assert status == 200, page
    events = [line.removeprefix("data: ") for line in page.splitlines() if line]
    assert "".join(json.loads(event)["text_output"] for event in events)


def test_the_curl_of_nvidias_documentation(server: Endpoints) -> None:
    body = {
        "text_input": PROMPT,
        "max_tokens": 20,
        "bad_words": "",
        "stop_words": "",
        "pad_id": 2,
        "end_id": 2,
    }
    status, page = post(server, "echolm/generate", body)
    assert status == 200, page
    assert json.loads(page)["text_output"]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"beam_width": 4}, "beam_width: expected 1, since no LLM here searches by beams, got 4"),
        ({"bad_words": ["no"]}, "bad_words: expected nothing, since no LLM here can take it"),
        ({"return_context_logits": True}, "return_context_logits: expected False"),
        ({"lora_task_id": 3}, "lora_task_id: expected 0"),
        ({"image_url_input": "file:///etc/passwd"}, "image_url_input: expected nothing"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number in (0, 10]"),
        ({"min_tokens": 13}, "min_tokens: expected 0 to max_tokens (12), got 13"),
        ({"max_token": 9}, "max_token: expected the name of an input, got an unknown one"),
        ({"parameters": {"n": 2}}, "n: expected the name of an input, got an unknown one"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(
    server: Endpoints, field: dict[str, Any], message: str
) -> None:
    status, page = post(
        server, "echolm/generate", {"text_input": PROMPT, "max_tokens": 12, **field}
    )
    assert status == 400
    assert message in json.loads(page)["error"]


def test_a_bad_row_does_not_fail_other_clients_rows(server: Endpoints) -> None:
    caller = Caller(server)
    said = refusal(lambda: caller.ask_rows({"text_input": PROMPT, "beam_width": 2, **QUIET}))
    assert "beam_width: expected 1" in said
    assert text(caller.ask(PROMPT, beam_width=1, max_tokens=4, **QUIET), "text_output")


@pytest.mark.parametrize("kind", [grpcclient, httpclient], ids=["grpc", "http"])
def test_triton_refuses_an_input_that_there_is_not(server: Endpoints, kind: Any) -> None:
    url = server.grpc_url if kind is grpcclient else server.http_address
    arrays = end_to_end(PROMPT, temprature=np.array([[1.0]], dtype=np.float32))
    with pytest.raises(InferenceServerException, match="unexpected inference input 'temprature'"):
        kind.InferenceServerClient(url).infer("echolm", tensors(arrays, kind))


def test_an_llm_gets_what_was_asked_for(server: Endpoints) -> None:
    caller = Caller(server)
    options: dict[str, Any] = {"llm": "small_llm", "max_tokens": 24, **QUIET}
    plain = caller.ask(PROMPT, **options)
    same = caller.ask(PROMPT, repetition_penalty=1.0, frequency_penalty=0.0, **options)
    assert text(plain, "text_output") == text(same, "text_output")
    for penalty in ({"repetition_penalty": 10.0}, {"frequency_penalty": 2.0}):
        other = caller.ask(PROMPT, **penalty, **options)
        assert text(other, "text_output") != text(plain, "text_output")
        assert text(other, "degraded") == ""
    options.update(llm="large_llm", max_tokens=250)
    usual = caller.ask(PROMPT, **options)
    assert text(usual, "finish_reason") == "stop"
    more = int(usual["num_output_tokens"].item()) + 5
    longer = caller.ask(PROMPT, min_tokens=more, **options)
    assert int(longer["num_output_tokens"].item()) >= more


@pytest.mark.parametrize("streaming", [False, True])
def test_our_llm_model_gives_the_log_probability_of_each_token(
    server: Endpoints, streaming: bool
) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "text_input": np.array([PROMPT], dtype=object),
        "sampling_param_max_tokens": np.array([10], np.int32),
        "sampling_param_exclude_input_from_output": np.array([True]),
        "return_log_probs": np.array([True]),
        "return_cumulative_logprob": np.array([True]),
        "streaming": np.array([streaming]),
    }
    outputs = ["text_output", "output_log_probs", "cumulative_logprob", "num_output_tokens"]
    results = streamed(server, "small_llm", arrays, outputs)
    results = [r for r in results if r.as_numpy("text_output") is not None]
    each = np.concatenate([r.as_numpy("output_log_probs") for r in results])
    assert len(each) == results[-1].as_numpy("num_output_tokens").item()
    assert (each <= 0).all()
    assert results[-1].as_numpy("cumulative_logprob").item() == pytest.approx(each.sum(), abs=1e-3)
