"""Requests and answers in the shapes of OpenAI's API, which all logs hold in some wrapping.

Only what one turn of text says can be served and learnt from: conversations, tools, pictures and
answers that are not complete are skipped, each with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from echolm.past_traffic.record import UNKNOWN, Logged, Skipped

_USERS, _ASSISTANTS = ("user", "human"), ("assistant", "ai", "model")
_SYSTEMS, _TOOLS = ("system", "developer"), ("tool", "function")
_TEXT_PARTS = ("text", "input_text", "output_text")
_SILENT_PARTS = ("reasoning", "thinking", "redacted_thinking")  # no part of the answer
_COMPLETE = (None, "", "stop", "eos", "end_turn", "completed")
_CUT = ("length", "max_tokens", "max_output_tokens", "incomplete")
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_SAMPLING = ("temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")


def decoded(value: Any) -> Any:
    """A value that the log may hold as text of JSON; text that is none stays as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text == "null":
        return None
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return value
    return value


def read_request(value: Any, parameters: Any = None) -> Logged:
    """The request in a body of chat completions, completions or responses, in messages, or a text.

    Args:
        parameters: where the log keeps what is no message: sampling, tools.

    Raises:
        Skipped: it is no request of one turn of text.
    """
    body = decoded(value)
    if isinstance(body, Mapping) and "role" in body:
        body = [body]
    if isinstance(body, list) and body:
        body = {"messages": body}
    if not isinstance(body, Mapping) or not _holds_request(body):
        # A prompt may look like JSON.
        body = {"prompt": value} if isinstance(value, str) else body
    if not isinstance(body, Mapping) or not body:
        raise Skipped("no request")
    parameters = decoded(parameters)
    options = {**(parameters if isinstance(parameters, Mapping) else {}), **body}
    _check_options(options)
    system, text = _prompt(body)
    models = (options["model"],) if isinstance(options.get("model"), str) else ()
    return Logged(text, "", system, tuple(filter(None, models)), sampling=_sampling(options))


def _holds_request(body: Mapping[str, Any]) -> bool:
    return any(body.get(name) for name in ("messages", "prompt", "input"))


def _prompt(body: Mapping[str, Any]) -> tuple[str, str]:
    """System prompt and request."""
    # A prompt that looks like JSON is a prompt.
    messages = decoded(body.get("messages")) or body.get("prompt") or body.get("input")
    if isinstance(messages, Mapping):  # a page of a list of messages
        messages = messages.get("data") or messages.get("messages")
    system = [text_of(body[name]) for name in ("system", "instructions") if body.get(name)]
    if isinstance(messages, str) or (
        isinstance(messages, list) and messages and all(isinstance(m, str) for m in messages)
    ):
        texts = [messages] if isinstance(messages, str) else messages
        if len(texts) > 1:
            raise Skipped("several prompts")
        return "\n\n".join(system), _not_empty(texts[0])
    if not messages:
        raise Skipped("no request")
    if not isinstance(messages, list):
        raise Skipped(UNKNOWN)
    more, texts = split_turns(messages)
    if len(texts) != 1:
        raise Skipped("conversation" if texts else "no request")
    return "\n\n".join([*system, *more]), _not_empty(texts[0])


def split_turns(messages: Sequence[Any]) -> tuple[list[str], list[str]]:
    """System prompts and requests of messages; Skipped where anybody else has spoken."""
    system: list[str] = []
    requests: list[str] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise Skipped(UNKNOWN)
        role = message.get("role") or message.get("type")
        if role in _TOOLS or message.get("tool_calls") or message.get("function_call"):
            raise Skipped("tools")
        if role in _ASSISTANTS or (role in _SYSTEMS and requests):
            raise Skipped("conversation")
        if role not in _USERS and role not in _SYSTEMS:
            raise Skipped(UNKNOWN)
        content = message.get("content")
        (system if role in _SYSTEMS else requests).append(text_of(content, message))
    return [text for text in system if text.strip()], requests


def text_of(content: Any, message: Mapping[str, Any] | None = None) -> str:
    """The text of a message's content, be it a text, parts of it or nothing."""
    if content is None:
        parts = (message or {}).get("content_parts")  # as stored completions have them
        return text_of(parts) if parts else ""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        raise Skipped(UNKNOWN)
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("tool_use", "tool_result", "function_call"):
            raise Skipped("tools")
        elif kind == "refusal":
            raise Skipped("refusal")
        elif kind not in _SILENT_PARTS:
            raise Skipped("not only text" if isinstance(kind, str) else UNKNOWN)
    return "".join(texts)


def _not_empty(text: str) -> str:
    if not text.strip():
        raise Skipped("no request")
    return text


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse a request with something that this service does not take yet."""
    if options.get("tools") or options.get("functions"):
        raise Skipped("tools")
    form = options.get("response_format") or {}
    if isinstance(form, Mapping) and form.get("type", "text") != "text":
        raise Skipped("response format")
    if options.get("stop") or options.get("stop_sequences"):
        raise Skipped("stop words")  # one of them may have cut the answer short
    modalities = options.get("modalities") or ["text"]
    if list(modalities) != ["text"]:
        raise Skipped("not only text")
    if options.get("store") is False and options.get("cache_control") == "no-store":
        raise Skipped("no-store")


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the request said of its sampling, where that is a number."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    sampling = {name: options[name] for name in _SAMPLING if is_number(options.get(name))}
    limits = [options[name] for name in _LIMITS if is_number(options.get(name))]
    return {**sampling, **({"max_tokens": int(limits[0])} if limits else {})}


def read_answer(value: Any) -> Logged:
    """The complete answer in a response, a message, chunks of a stream, or a text.

    Gives its text as ``response``, and the model that it names.

    Raises:
        Skipped: there is none, or it is no complete text.
    """
    if isinstance(value, str) and value.lstrip().startswith("data: {"):
        return read_answer(_server_sent(value))
    answer = decoded(value)
    if isinstance(answer, list) and answer:
        if all(isinstance(part, Mapping) and "choices" in part for part in answer):
            return _read_chunks(answer)
        if len(answer) == 1 and isinstance(answer[0], Mapping) and "role" in answer[0]:
            answer = answer[0]
        elif isinstance(value, str) and not _are_parts(answer):
            answer = value  # an answer that looks like JSON
        else:
            answer = {"content": answer}
    if isinstance(answer, Mapping):
        if answer.get("error"):
            raise Skipped("error")
        models = (answer["model"],) if isinstance(answer.get("model"), str) else ()
        if (text := _text_of_object(answer)) is not None:
            return replace(_answered(text), models=tuple(filter(None, models)))
        if not isinstance(value, str) and answer:
            raise Skipped(UNKNOWN)
        answer = value if answer else None
    if answer is None or not isinstance(answer, str):
        raise Skipped("no answer")
    return _answered(answer)


def _answered(text: str) -> Logged:
    if not text.strip():
        raise Skipped("no answer")
    return Logged("", text)


def _are_parts(values: Sequence[Any]) -> bool:
    return all(isinstance(v, Mapping) and isinstance(v.get("type"), str) for v in values)


def _text_of_object(answer: Mapping[str, Any]) -> str | None:
    """The text of a response or message; None if it is neither."""
    if isinstance(choices := answer.get("choices"), list):
        if not choices:
            raise Skipped("no answer")
        first = min(choices, key=lambda c: c.get("index") or 0 if isinstance(c, Mapping) else 0)
        return _text_of_choice(first)
    if isinstance(output := answer.get("output"), list):  # of the API "responses"
        check_finish(answer.get("status"))
        kinds = {part.get("type") for part in output if isinstance(part, Mapping)}
        if any(str(kind).endswith("_call") for kind in kinds):
            raise Skipped("tools")
        messages = [p for p in output if isinstance(p, Mapping) and p.get("type") == "message"]
        return "".join(text_of(message.get("content")) for message in messages)
    if "role" in answer or "content" in answer:
        return _text_of_message(answer, answer.get("stop_reason"))
    for name in ("text", "completion", "output_text"):
        if isinstance(answer.get(name), str):
            return str(answer[name])
    return None


def _text_of_choice(choice: Any) -> str:
    if not isinstance(choice, Mapping):
        raise Skipped(UNKNOWN)
    reason = choice.get("finish_reason")
    if isinstance(choice.get("text"), str):
        check_finish(reason)
        return str(choice["text"])
    message = choice.get("message") or choice.get("delta")
    if not isinstance(message, Mapping):
        raise Skipped("no answer" if message is None else UNKNOWN)
    return _text_of_message(message, reason)


def _text_of_message(message: Mapping[str, Any], finish_reason: Any) -> str:
    if message.get("tool_calls") or message.get("function_call"):
        raise Skipped("tools")
    check_finish(finish_reason)
    if message.get("refusal"):
        raise Skipped("refusal")
    return text_of(message.get("content"), message)


def check_finish(reason: Any) -> None:
    if isinstance(reason, str):
        reason = reason.lower()
    if reason in _CUT:
        raise Skipped("cut short")
    if reason in ("tool_calls", "function_call", "tool_use"):
        raise Skipped("tools")
    if reason == "stop_sequence":
        raise Skipped("stop words")
    if reason in ("error", "failed", "cancelled"):
        raise Skipped("error")
    if reason not in _COMPLETE:
        raise Skipped("refusal" if reason == "content_filter" else "other end")


def _server_sent(text: str) -> list[Any]:
    """The chunks of a stream that was logged as it was sent."""
    lines = (line.strip().removeprefix("data:").strip() for line in text.splitlines())
    try:
        return [json.loads(line) for line in lines if line and line != "[DONE]"]
    except (ValueError, RecursionError) as error:
        raise Skipped(UNKNOWN) from error


def _read_chunks(chunks: Iterable[Mapping[str, Any]]) -> Logged:
    """The answer of a stream's chunks (or of the only response of a list)."""
    texts, reason, model = [], None, ""
    for chunk in chunks:
        model = chunk.get("model") or model
        choices = chunk["choices"] if isinstance(chunk["choices"], list) else []
        for choice in choices:
            if not isinstance(choice, Mapping):
                raise Skipped(UNKNOWN)
            if choice.get("index") or 0:
                continue
            reason = choice.get("finish_reason") or reason
            texts.append(_text_of_choice({**choice, "finish_reason": None}) if choice else "")
    if reason is None:
        raise Skipped("cut short")  # the stream broke off
    check_finish(reason)
    return replace(
        _answered("".join(texts)), models=(model,) if isinstance(model, str) and model else ()
    )
