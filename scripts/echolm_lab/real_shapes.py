"""LLMs of real sizes without weights, and the prompts that recorded decisions make for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from echolm.errors import ConfigurationError
from echolm.llm.templates import template

from echolm_lab.bench import SIMILAR_ONLY, Changes
from echolm_lab.corruption import Interaction
from echolm_lab.report.checkpoints import readable_by_transformers_4
from echolm_lab.tasks import WorkItem

VOCABULARY = 151_936
"""Of Qwen2.5: reading the output projection is a tenth of a small LLM's step."""
COUNTS = (1, 3, 5)
ORDERS = ("prefix", "similarity")


def retrieval_of(count: int, order: str) -> Changes:
    """Settings under which each prompt gets so many examples, the most similar ones."""
    return {
        **SIMILAR_ONLY,
        "retrieval": {**SIMILAR_ONLY["retrieval"], "max_examples": count, "order": order},
    }


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], tokenizer: Path, vocabulary: int = VOCABULARY
) -> None:
    """A folder that an engine loads with ``load_format=dummy``.

    Random weights answer with any token of the vocabulary, and a piece of an answer must have a
    text to be sent, so the tokenizer gets a word for every id that it has none for.

    Args:
        config: the shape's keys of ``config.json``.
        tokenizer: folder of the tokenizer that encodes the prompts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    known = words["model"]["vocab"]
    known.update({f"word{i}": i for i in range(len(known), vocabulary)})
    (folder / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    old = json.loads((tokenizer / "config.json").read_text(encoding="utf-8"))
    changes = {"vocab_size": vocabulary, "dtype": "bfloat16", "max_position_embeddings": 4_096}
    (folder / "config.json").write_text(json.dumps({**old, **config, **changes}, indent=2))
    readable_by_transformers_4(folder)


class Decisions:
    """Which past interactions stood in which request's prompt, in which order.

    Args:
        file: JSON that :func:`write_decisions` wrote.
        items: requests of the stream that was recorded, at least as many.
        past: the recorded past.
    """

    def __init__(self, file: Path, items: Sequence[WorkItem], past: Sequence[Interaction]) -> None:
        try:
            self._chosen = json.loads(file.read_text(encoding="utf-8"))["example_ids"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(
                f"decisions: cannot read {file} ({error!r}); record them with "
                "`scripts/bench_gpu.py record`"
            ) from error
        self._items, self._past = items, past

    def prompts(self, count: int, order: str, salt: str) -> Iterator[str]:
        """The prompts of all recorded requests with so many examples.

        Args:
            salt: a system prompt; under different ones prompts share no prefix, so that no
                setting finds what another has left in the cache.
        """
        render = template("echolm").render
        chosen = self._chosen[_key(count, order)] if count else [[]] * len(self._chosen["1 prefix"])
        for item, ids in zip(self._items, chosen, strict=False):
            examples = [(self._past[i - 1].item.text, self._past[i - 1].response) for i in ids]
            yield render(item.text, examples, salt)


def write_decisions(file: Path, chosen: Mapping[tuple[int, str], Sequence[Sequence[int]]]) -> None:
    """Keep example ids by request, for each count and order."""
    rows = {_key(*key): [list(ids) for ids in rows] for key, rows in chosen.items()}
    file.write_text(json.dumps({"example_ids": rows}, separators=(",", ":")) + "\n")


def _key(count: int, order: str) -> str:
    return f"{count} {order}"
