"""What OpenAI's API asks for beyond text: tools, forms of the answer, log probabilities.

The tensors are in ``contracts.OPENAI_INPUTS``. They go to LLMs that can do it, so what they hold is
checked here, within bounds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import jsonschema_rs
import orjson

from echolm.conversation import MAX_DEPTH, json_levels
from echolm.errors import InvalidRequestError

MAX_TOOLS = 128
"""Most tools in one request, as in OpenAI's API."""

_CHOICES = ("none", "auto", "required")
_FORMATS = ("text", "json_object", "json_schema")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_A_NAME = "a name of 1 to 64 of the characters A-Z a-z 0-9 _ . -"
_GUIDES = ("guided_decoding_guide_type", "guided_decoding_guide")


def take_openai(row: dict[str, Any], max_chars: int) -> dict[str, Any]:
    """Take these inputs out of a row of inputs; gives fields of ``Sampling``.

    Args:
        max_chars: most characters of each.

    Raises:
        InvalidRequestError: names the input, and where in its JSON it is wrong.
    """
    sampling: dict[str, Any] = {"top_logprobs": row.pop("logprobs", None)}
    tools, choice = row.pop("tools", None), row.pop("tool_choice", None)
    names: list[str] = []
    if tools is not None:
        names = _tool_names(_read("tools", tools, max_chars))
        sampling["tools"] = tools if names else ""
    if choice is not None:
        _check_choice(_read("tool_choice", choice, max_chars), names)
        sampling["tool_choice"] = choice if names else ""
    if (form := row.pop("response_format", None)) is not None:
        guide = _guide(_read("response_format", form, max_chars))
        if guide and any(row.get(name) for name in _GUIDES):
            expected = f"nothing beside {' or '.join(_GUIDES)}, which ask for another form"
            raise InvalidRequestError.of("response_format", expected, form)
        sampling |= {**guide, "response_format": form} if guide else {}
    return sampling


def _read(name: str, text: str, max_chars: int) -> Any:
    if len(text) > max_chars:
        raise InvalidRequestError.of(name, f"at most {max_chars} characters", len(text))
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError.of(name, "JSON", f"what is not: {error}") from error
    if next(islice(json_levels(value), MAX_DEPTH, None), None):
        raise InvalidRequestError.of(name, f"JSON at most {MAX_DEPTH} levels deep", "more")
    return value


def _tool_names(tools: Any) -> list[str]:
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        got = f"{len(tools)}" if isinstance(tools, list) else type(tools).__name__
        raise InvalidRequestError.of("tools", f"an array of at most {MAX_TOOLS} tools", got)
    names: list[str] = []
    for i, tool in enumerate(tools):
        where = f"tools[{i}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            kind = tool.get("type") if isinstance(tool, dict) else type(tool).__name__
            raise InvalidRequestError.of(f"{where}.type", "function", kind)
        function = tool.get("function")
        if not isinstance(function, dict):
            got = type(function).__name__
            raise InvalidRequestError.of(f"{where}.function", "an object", got)
        name, description = function.get("name"), function.get("description")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidRequestError.of(f"{where}.function.name", _A_NAME, name)
        if name in names:
            expected = "names that differ"
            raise InvalidRequestError.of(f"{where}.function.name", expected, f"{name} twice")
        if not isinstance(description, str | None):
            got = type(description).__name__
            raise InvalidRequestError.of(f"{where}.function.description", "text", got)
        if (parameters := function.get("parameters")) is not None:
            _check_schema(f"{where}.function.parameters", parameters)
        names.append(name)
    return names


def _check_choice(choice: Any, tools: Sequence[str]) -> None:
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if name not in tools:
            expected = f"one of the tools ({list(tools)})"
            raise InvalidRequestError.of("tool_choice.function.name", expected, name)
    elif choice not in _CHOICES:
        expected = f"one of {list(_CHOICES)}, or an object of type function"
        raise InvalidRequestError.of("tool_choice", expected, choice)
    elif not tools and choice == "required":
        raise InvalidRequestError.of("tool_choice", "tools beside it", choice)


def _guide(form: Any) -> dict[str, Any]:
    """The guide that a response format is."""
    kind = form.get("type") if isinstance(form, dict) else type(form).__name__
    if kind not in _FORMATS:
        raise InvalidRequestError.of("response_format.type", f"one of {list(_FORMATS)}", kind)
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"guide_type": "json"}
    where, asked = "response_format.json_schema", form.get("json_schema")
    if not isinstance(asked, dict):
        raise InvalidRequestError.of(where, "an object", type(asked).__name__)
    name = asked.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError.of(f"{where}.name", _A_NAME, name)
    _check_schema(f"{where}.schema", asked.get("schema"))
    return {"guide_type": "json_schema", "guide": orjson.dumps(asked["schema"]).decode()}


@lru_cache
def _drafts() -> list[Any]:
    """The schemas of schemas, newest first. What a schema itself names is never fetched."""
    return [
        jsonschema_rs.Draft202012Validator(
            {"$ref": "https://json-schema.org/draft/2020-12/schema"}
        ),
        jsonschema_rs.Draft7Validator({"$ref": "http://json-schema.org/draft-07/schema#"}),
        jsonschema_rs.Draft4Validator({"$ref": "http://json-schema.org/draft-04/schema#"}),
    ]


def _check_schema(where: str, schema: Any) -> None:
    """InvalidRequestError if it is no JSON schema of any draft in use."""
    if not isinstance(schema, dict):
        raise InvalidRequestError.of(where, "a JSON schema, an object", type(schema).__name__)
    newest, *others = _drafts()
    try:
        newest.validate(schema)
    except jsonschema_rs.ValidationError as error:
        if not any(draft.is_valid(schema) for draft in others):
            place = "/".join(map(str, error.instance_path)) or "its top"
            got = f"at {place}: {error.message}"
            raise InvalidRequestError.of(where, "a JSON schema", got) from error
