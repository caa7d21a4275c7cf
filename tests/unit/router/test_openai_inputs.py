"""What OpenAI's API asks for beyond text: what is taken, what is refused, and who answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from echolm.errors import InvalidRequestError
from echolm.primitives import Request, Sampling
from echolm.router.openai_inputs import MAX_TOOLS
from echolm.router.stored import answer_key_of
from echolm.router.validation import build_request, is_searched, may_store
from echolm.settings import Limits, Settings

SETTINGS = Settings(limits=Limits(max_conversation_chars=20_000))
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}


def tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **function}}


def json_schema(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, **fields}}


def asked(**inputs: Any) -> Request:
    """The request of inputs, of which JSON comes as text."""
    texts = {k: json.dumps(v) if k != "logprobs" else v for k, v in inputs.items()}
    return build_request(SETTINGS, text="hello", **texts)


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth - 1):
        value = {"not": value}
    return value


@pytest.mark.parametrize(
    "choice", ["none", "auto", "required", {"type": "function", "function": {"name": "weather"}}]
)
def test_tools_and_their_choice_are_passed_as_they_are(choice: Any) -> None:
    tools = [tool(description="of a city", strict=True), tool("clock", parameters=None)]
    sampling = asked(tools=tools, tool_choice=choice).sampling
    assert json.loads(sampling.tools) == tools
    assert json.loads(sampling.tool_choice) == choice


@pytest.mark.parametrize(
    ("form", "guide_type", "guide"),
    [
        ({"type": "json_object"}, "json", None),
        (json_schema(SCHEMA, strict=True), "json_schema", SCHEMA),
        (json_schema({}), "json_schema", {}),
    ],
)
def test_a_response_format_is_a_guide(form: Any, guide_type: str, guide: Any) -> None:
    sampling = asked(response_format=form).sampling
    assert (sampling.guide_type, json.loads(sampling.guide or "null")) == (guide_type, guide)
    assert json.loads(sampling.response_format) == form


@pytest.mark.parametrize(
    "inputs",
    [{"tools": []}, {"tools": [], "tool_choice": "auto"}, {"response_format": {"type": "text"}}],
)
def test_what_asks_for_nothing_changes_nothing(inputs: Any) -> None:
    assert asked(**inputs) == asked()


@pytest.mark.parametrize(
    "schema",
    [
        {"items": [{"type": "string"}], "definitions": {"a": {}}},  # of draft 7
        {"minimum": 3, "exclusiveMinimum": True},  # of draft 4, as OpenAPI 3.0 has it
        {"$schema": "http://localhost:1/never-asked", "$ref": "http://localhost:1/nor-this"},
        {"type": ["string", "null"], "enum": ["a", None], "default": None},
    ],
)
def test_schemas_of_all_drafts_in_use_are_taken(schema: Any) -> None:
    assert asked(response_format=json_schema(schema)).sampling.guide
    assert asked(tools=[tool(parameters=schema)]).sampling.tools


BAD = [
    ({"tools": {}}, "tools: expected an array of at most 128 tools, got dict"),
    ({"tools": [tool(f"t{k}") for k in range(MAX_TOOLS + 1)]}, "tools: .*got 129"),
    ({"tools": ["weather"]}, r"tools\[0\]\.type: expected function, got str"),
    ({"tools": [{"type": "code_interpreter"}]}, r"tools\[0\]\.type: .*got code_interpreter"),
    ({"tools": [{"type": "function"}]}, r"tools\[0\]\.function: expected an object"),
    ({"tools": [tool("a b")]}, r"tools\[0\]\.function\.name: expected a name of 1 to 64"),
    ({"tools": [tool(), tool()]}, r"tools\[1\]\.function\.name: .*got weather twice"),
    ({"tools": [tool(description=3)]}, r"tools\[0\]\.function\.description: expected text"),
    ({"tools": [tool(parameters=[])]}, r"tools\[0\]\.function\.parameters: .*got list"),
    (
        {"tools": [tool(parameters={"properties": {"a": {"type": "text"}}})]},
        r"tools\[0\]\.function\.parameters: expected a JSON schema, got at properties/a/type",
    ),
    ({"tools": [tool(parameters=nested(80))]}, "tools: expected JSON at most 64 levels"),
    ({"tools": [tool(description="x" * 20_000)]}, "tools: expected at most 20000 characters"),
    ({"tool_choice": "required"}, "tool_choice: expected tools beside it"),
    ({"tools": [tool()], "tool_choice": "any"}, "tool_choice: expected one of .*'required'"),
    ({"tools": [tool()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice: expected one"),
    (
        {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "clock"}}},
        r"tool_choice\.function\.name: expected one of the tools \(\['weather'\]\), got clock",
    ),
    ({"tools": [tool()], "tool_choice": {"type": "function"}}, r"tool_choice\.function\.name"),
    ({"response_format": "json"}, r"response_format\.type: .*got str"),
    ({"response_format": {"type": "xml"}}, r"response_format\.type: .*got xml"),
    ({"response_format": {"type": "json_schema"}}, r"response_format\.json_schema: expected an ob"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        r"response_format\.json_schema\.name: expected a name",
    ),
    ({"response_format": json_schema(None)}, r"response_format\.json_schema\.schema: .*NoneType"),
    ({"response_format": json_schema({"type": 3})}, r"json_schema\.schema: expected a JSON schema"),
    ({"response_format": json_schema(nested(80))}, "response_format: expected JSON at most 64"),
    ({"logprobs": 21}, "logprobs: expected 0 to 20, got 21"),
    ({"logprobs": -1}, "logprobs: expected 0 to 20, got -1"),
]


@pytest.mark.parametrize(("inputs", "told"), BAD)
def test_bad_input_is_named(inputs: Any, told: str) -> None:
    with pytest.raises(InvalidRequestError, match=told):
        asked(**inputs)


@pytest.mark.parametrize("name", ["tools", "tool_choice", "response_format"])
@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "nan", '"\\ud800"'])
def test_what_is_no_json_is_named(name: str, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name}: expected"):
        build_request(SETTINGS, text="hello", **{name: text})


def test_a_form_is_asked_for_in_one_way() -> None:
    form = json.dumps({"type": "json_object"})
    empty = {"guided_decoding_guide_type": "", "guided_decoding_guide": ""}
    sampling = build_request(SETTINGS, text="hello", response_format=form, **empty).sampling
    assert (sampling.guide_type, sampling.guide) == ("json", "")
    with pytest.raises(InvalidRequestError, match="response_format: expected nothing beside"):
        build_request(
            SETTINGS, text="hello", response_format=form, guided_decoding_guide_type="json"
        )


@pytest.mark.parametrize(
    ("inputs", "stored", "searched"),
    [
        ({}, True, True),
        ({"logprobs": 0}, True, True),
        ({"tools": [tool()]}, False, False),
        ({"tools": [tool()], "tool_choice": "none"}, False, False),
        ({"response_format": {"type": "json_object"}}, False, True),
        ({"response_format": json_schema(SCHEMA)}, False, True),
    ],
)
def test_what_is_not_only_text_is_not_reused(inputs: Any, stored: bool, searched: bool) -> None:
    request = asked(**inputs)
    assert may_store(SETTINGS, request, SETTINGS.strongest_llm.name) is stored
    assert is_searched(SETTINGS, request) is searched
    assert bool(answer_key_of(SETTINGS, request)) is (not inputs)


def test_keys_of_stored_answers_are_as_before() -> None:
    """What was stored by an earlier release can be given on."""
    assert asked().sampling == Sampling(128)
    assert answer_key_of(SETTINGS, asked())


@pytest.mark.parametrize("weight", [0.0, 0.25, 1_000.0])
def test_a_cost_weight_is_the_requests_own(weight: float) -> None:
    assert build_request(SETTINGS, text="hello", cost_weight=weight).cost_weight == weight


@pytest.mark.parametrize("weight", [-0.1, 1_001.0, float("nan"), float("inf")])
def test_a_bad_cost_weight_is_named(weight: float) -> None:
    with pytest.raises(InvalidRequestError, match="cost_weight: expected a number from 0"):
        build_request(SETTINGS, text="hello", cost_weight=weight)
