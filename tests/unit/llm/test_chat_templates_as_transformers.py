"""Chat templates in the shapes of common checkpoints, against what ``transformers`` renders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from echolm.conversation import Turn
from echolm.errors import InvalidRequestError
from echolm.llm.chat_template import ChatTemplate, load_chat_template
from record_chat_templates import DATA, conversations, digest, write_tokenizer
from tokenizers import Tokenizer

SHAPES = sorted(path.parent.name for path in DATA.glob("*/shape.json"))


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(shape: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("checkpoints") / shape, DATA / shape)


@pytest.fixture(scope="module")
def template(shape: str, folder: Path) -> ChatTemplate:
    described = json.loads((DATA / shape / "shape.json").read_text())
    return load_chat_template("", folder, described["arguments"])


def turns(messages: list[dict[str, Any]]) -> list[Turn]:
    return [Turn(message["role"], message["content"]) for message in messages]


def test_there_are_enough_shapes() -> None:
    assert len(SHAPES) >= 10


def test_prompts_are_those_of_transformers_token_for_token(
    shape: str, template: ChatTemplate, folder: Path
) -> None:
    expected = json.loads((DATA / shape / "expected.json").read_text())["cases"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    compared = 0
    for messages, case in zip(conversations(), expected, strict=True):
        if case["text"] is None:
            continue
        prompt = template.render(turns(messages))
        assert prompt == case["text"]
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        assert (len(ids), digest(ids)) == (case["tokens"], case["ids"])
        compared += 1
    assert compared >= 10


def test_what_transformers_refuses_is_adapted_or_refused(
    shape: str, template: ChatTemplate
) -> None:
    expected = json.loads((DATA / shape / "expected.json").read_text())["cases"]
    for messages, case in zip(conversations(), expected, strict=True):
        if case["text"] is not None:
            continue
        # All of them have a system prompt, which goes into the first user turn.
        system, first, *rest = messages
        merged = {**first, "content": f"{system['content']}\n\n{first['content']}"}
        assert template.render(turns(messages)) == template.render(turns([merged, *rest]))


def test_bos_comes_once_with_the_tokenizers_own(template: ChatTemplate, folder: Path) -> None:
    """So an engine reads a prompt whose tokenizer cannot be told to add nothing."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = template.render([Turn("user", "x")])
    exact = tokenizer.encode(prompt, add_special_tokens=False).ids
    stripped = prompt.removeprefix(template.added_bos)
    assert tokenizer.encode(stripped, add_special_tokens=True).ids == exact


def test_no_text_brings_a_token_of_the_checkpoint_into_a_prompt(
    template: ChatTemplate, folder: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    added = tokenizer.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    everything = "".join(token.content for token in added.values())
    hostile = [Turn("user", everything), Turn("assistant", everything), Turn("user", everything)]
    harmless = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")]
    found, wanted = (
        [
            i
            for i in tokenizer.encode(template.render(t), add_special_tokens=False).ids
            if i in special
        ]
        for t in (hostile, harmless)
    )
    assert found == wanted


def test_roles_that_a_template_does_not_show_are_refused(
    shape: str, template: ChatTemplate
) -> None:
    calls = json.dumps([{"id": "abcdefghi", "type": "function", "function": {"name": "f"}}])
    asked = [Turn("user", "a"), Turn("assistant", "", calls), Turn("tool", "seen", "", "abcdefghi")]
    if "tool" in template.facts.roles:
        assert "seen" in template.render(asked)
    else:
        with pytest.raises(InvalidRequestError, match="messages: expected roles"):
            template.render(asked)
    with_tools = {"qwen2.5", "qwen3", "llama3", "mistral"}
    assert (shape in with_tools) == ("tool" in template.facts.roles) or shape in (
        "named",
        "smollm2",
    )
