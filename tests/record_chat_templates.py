"""What ``transformers`` makes of chat templates, recorded for the tests, and compared at random.

``record`` writes ``expected.json`` into each folder of ``tests/data/chat_templates``; ``compare``
renders random conversations by templates anywhere with both. Both want an environment with
transformers, orjson and tokenizers, no torch:

    python -m venv hf && hf/bin/pip install transformers orjson tokenizers
    PYTHONPATH=python_backends hf/bin/python tests/record_chat_templates.py record
    PYTHONPATH=python_backends hf/bin/python tests/record_chat_templates.py compare DIR --count 200
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

DATA = Path(__file__).resolve().parent / "data" / "chat_templates"
Message = dict[str, Any]

TEXTS = (
    "What is 3 < 5 & 'so' on?",
    "  two\n\nlines with spaces around \n",
    'naïve Ünïcödé 漢字 😀 "quoted" \\ and {{ braces }} {% if %}',
    "<b>bold</b> <!-- comment --> user assistant",
    "x",
    "list:\n- a\n- b\n\n```sh\nls | wc -l\n```",
    "",
    "\u200bzero\u00a0width\u2028line",
)


def conversations() -> list[list[Message]]:
    """Conversations with and without a system prompt, of one turn and of many."""
    found = []
    for turns in (1, 3, 5):
        for system in (None, 0, 2):
            for shift in range(3):
                texts = [TEXTS[(shift + k) % len(TEXTS)] for k in range(turns)]
                said = [_message(("user", "assistant")[k % 2], t) for k, t in enumerate(texts)]
                before = [] if system is None else [_message("system", TEXTS[system])]
                found.append([*before, *said])
    found.append([_message("user", "a"), _message("assistant", "<think>\nwhy\n</think>\n\nb")])
    found[-1].append(_message("user", "c"))
    found.append([*found[-1], _message("assistant", "d"), _message("user", TEXTS[2])])
    return found


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def write_tokenizer(folder: Path, shape: Path) -> Path:
    """A folder as a shape has it, with a tokenizer of single bytes and the shape's tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = json.loads((shape / "shape.json").read_text(encoding="utf-8"))
    for file in shape.iterdir():
        if file.name not in ("shape.json", "expected.json"):
            shutil.copy(file, folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in tokens["special"]])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in tokens["plain"]])
    if bos := tokens["bos"]:
        pair = (bos, tokenizer.token_to_id(bos))
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[pair])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def digest(ids: Sequence[int]) -> str:
    """A short text that differs where token ids do."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


def record() -> None:
    """Write ``expected.json`` into the folder of each shape."""
    import transformers

    for shape in sorted(path.parent for path in DATA.glob("*/shape.json")):
        arguments = json.loads((shape / "shape.json").read_text(encoding="utf-8"))["arguments"]
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                write_tokenizer(Path(folder) / "t", shape)
            )
        cases = []
        for messages in conversations():
            case: dict[str, Any] = {"text": None}
            try:
                case["text"] = tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **arguments
                )
                ids = tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False, **arguments
                )
                case |= {"tokens": len(ids), "ids": digest(ids)}
            except Exception as error:
                case["error"] = str(error)
            cases.append(case)
        lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
        text = f'{{"transformers": "{transformers.__version__}", "cases": [\n{lines}\n]}}\n'
        (shape / "expected.json").write_text(text, encoding="utf-8")
        print(f"{shape.name}: {sum(c['text'] is not None for c in cases)} of {len(cases)} rendered")


def random_conversation(rng: random.Random) -> list[Message]:
    """Any roles, mostly in a usual order, and any text without markers."""
    pieces = [*TEXTS, "0", "\n", " ", "é", "}}", "{#", "'", "%", "&lt;", "[x]", "a.b", "\t"]

    def text() -> str:
        drawn = "".join(rng.choices(pieces, k=rng.randint(0, 4)))
        return drawn + "".join(chr(rng.randint(32, 0x2FFF)) for _ in range(rng.randint(0, 6)))

    found = [_message("system", text())] if rng.random() < 0.5 else []
    for k in range(rng.choice((1, 1, 3, 3, 5, 9))):
        role = (
            ("user", "assistant")[k % 2] if rng.random() < 0.95 else rng.choice(("user", "system"))
        )
        found.append(_message(role, text()))
        if role == "assistant" and rng.random() < 0.2:
            arguments = {text(): rng.choice([text(), 1.5, None, [text()]])}
            function = {"name": "f" + str(k), "arguments": arguments}
            call = {"id": "abcdefghi", "type": "function", "function": function}
            found[-1]["tool_calls"] = [call]
            found.append({**_message("tool", text()), "tool_call_id": "abcdefghi"})
    return found


def templates_in(folder: Path) -> Iterator[tuple[str, Path | None, str]]:
    """Name, folder of the tokenizer if there is one, and source of each template below a folder."""
    for file in sorted(folder.rglob("*.jinja")):
        has_tokenizer = (file.parent / "tokenizer.json").is_file()
        yield (
            str(file.relative_to(folder)),
            file.parent if has_tokenizer else None,
            file.read_text(),
        )


def compare(folder: Path, count: int, seed: int) -> Counter[str]:
    """Render random conversations by each template with both; tells what differs."""
    from echolm.conversation import Turn
    from echolm.errors import ConfigurationError, InvalidRequestError
    from echolm.llm.chat_template import ChatTemplate
    from echolm.llm.tokenizer_files import TokenizerFiles, read_tokenizer_files
    from transformers.utils.chat_template_utils import render_jinja_template

    total: Counter[str] = Counter()
    for name, with_tokenizer, source in templates_in(folder):
        rng, counts = random.Random(f"{seed} {name}"), Counter[str]()
        named = {"bos_token": "<s>", "eos_token": "</s>"}
        files = TokenizerFiles(named=named, special=frozenset(named.values()))
        if with_tokenizer is not None:
            files = read_tokenizer_files(with_tokenizer)
        try:
            ours = ChatTemplate({"default": source}, files)
        except ConfigurationError as error:
            print(f"{name}: refused at start: {error}")
            total["templates refused at start"] += 1
            continue
        shown = 0
        for _ in range(count):
            messages = random_conversation(rng)
            turns = [
                Turn(
                    m["role"],
                    m["content"],
                    json.dumps(m["tool_calls"]) if "tool_calls" in m else "",
                    m.get("tool_call_id", ""),
                )
                for m in messages
            ]
            theirs = said = None
            try:
                [theirs], _ = render_jinja_template(
                    [messages], chat_template=source, add_generation_prompt=True, **files.named
                )
            except Exception as error:
                said = str(error)
            try:
                mine = ours.render(turns)
            except InvalidRequestError:
                mine = None
            if mine == theirs:
                counts["both refuse" if mine is None else "equal"] += 1
            elif theirs is None:
                counts["only we render, adapted"] += 1
            elif mine is None or ours._adapted(turns) != turns:
                # A role whose text the template drops is refused, or a system message moved.
                counts["the template would drop text"] += 1
            elif "".join(mine.split("\u200b")) == "".join(theirs.split("\u200b")):
                counts["equal but for escapes"] += 1
            else:
                counts["DIFFERENT"] += 1
                if (shown := shown + 1) <= 2:
                    print(f"{name}:\n  {theirs!r}\n  {mine!r}\n  {said}")
        total += counts
        total["templates"] += 1
        print(name, dict(counts))
    return total


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("record", help="write expected.json for each shape")
    comparing = verbs.add_parser("compare", help="random conversations by templates in a folder")
    comparing.add_argument("folder", type=Path, help="folder with .jinja files")
    comparing.add_argument("--count", type=int, default=200, help="conversations for each template")
    comparing.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.verb == "record":
        record()
        return 0
    total = compare(options.folder, options.count, options.seed)
    print(json.dumps(total))
    return 1 if total["DIFFERENT"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
