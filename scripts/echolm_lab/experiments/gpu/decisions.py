"""The retriever's choices over the recorded past, from which real prompts are made."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from echolm.conversation import Turn
from echolm.errors import ConfigurationError
from echolm.llm.chat_template import few_shot, load_chat_template
from echolm.serving.serve import ServeOptions, running_server
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from rich.console import Console

from echolm_lab.experiments.bench import Changes, changed, connected
from echolm_lab.experiments.comparison import store_past
from echolm_lab.experiments.gpu.common import HISTORY, ROOT, SCRIPTS
from echolm_lab.experiments.load import closed_loop
from echolm_lab.experiments.path import dummy_repository
from echolm_lab.policies.base import MAX_TOKENS
from echolm_lab.policies.similar_examples import SIMILAR_ONLY
from echolm_lab.tasks import Item, PastInteraction, WorkItem, Workload
from echolm_lab.tasks.past import WORKLOAD_SEED, recorded_past

DECISIONS = SCRIPTS / "decisions.json"
COUNTS = (1, 3, 5)
ORDERS = ("prefix", "similarity")
RECORDED, _SEED = 6_000, 3
"""Requests of the live stream for which the choices were recorded, and its seed."""


def recorded_items() -> list[WorkItem]:
    """The requests for which the choices were recorded."""
    return Workload(seed=WORKLOAD_SEED).stream(RECORDED, seed=_SEED, phase="live")


class Decisions:
    """Which past interactions stood in which request's prompt, in which order.

    Args:
        file: JSON that :func:`write_decisions` wrote.
        items: requests of the stream that was recorded, at least as many.
        past: the recorded past.
    """

    def __init__(
        self, file: Path, items: Sequence[WorkItem], past: Sequence[PastInteraction]
    ) -> None:
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
        render = load_chat_template("echolm", None).render
        chosen = self._chosen[_key(count, order)] if count else [[]] * len(self._chosen["1 prefix"])
        for item, ids in zip(self._items, chosen, strict=False):
            examples = [(self._past[i - 1].item.text, self._past[i - 1].response) for i in ids]
            yield render(few_shot([Turn("user", item.text)], examples, salt))


def write_decisions(file: Path, chosen: Mapping[tuple[int, str], Sequence[Sequence[int]]]) -> None:
    """Keep example ids by request, for each count and order."""
    rows = {_key(*key): [list(ids) for ids in rows] for key, rows in chosen.items()}
    file.write_text(json.dumps({"example_ids": rows}, separators=(",", ":")) + "\n")


def _key(count: int, order: str) -> str:
    return f"{count} {order}"


def record(options: argparse.Namespace) -> None:
    """The retriever's choices for new requests over the recorded past, without LLMs."""
    console = Console()
    items = recorded_items()
    chosen: dict[tuple[int, str], list[tuple[int, ...]]] = {}
    with tempfile.TemporaryDirectory() as work:
        store = load_settings().model_copy(update={"data_dir": Path(work) / "store"})
        past = recorded_past(HISTORY)
        store_past(store, [(e.item.text, e.response) for e in past], console)
        models = dummy_repository(Path(work) / "models")
        for number, (count, order) in enumerate((c, o) for c in COUNTS for o in ORDERS):
            data = Path(work) / str(number)
            data.mkdir()
            shutil.copy(store.data_dir / "milvus.db", data)
            settings = changed(store, retrieval_of(count, order), data)
            chosen[count, order] = asyncio.run(_choices(settings, models, items, console))
    write_decisions(options.output, chosen)


async def _choices(
    settings: Settings, models: Path, items: Sequence[WorkItem], console: Console
) -> list[tuple[int, ...]]:
    """Ids of the examples that each request gets."""
    serve = ServeOptions(
        profile=None,
        model_repositories=(ROOT / "model_repository" / "core", models),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )
    with running_server(settings, serve, progress=console.print) as endpoints:
        async with connected(settings, endpoints, console, 32) as site:
            chosen: dict[str, tuple[int, ...]] = {}

            class Asking:
                name = "small_with_examples"

                async def send(self, item: Item) -> Any:
                    answer = await site.client.generate(
                        item.text, llm="small_llm", cache_control="no-store", max_tokens=MAX_TOKENS
                    )
                    chosen[item.text] = answer.example_ids

            await closed_loop(Asking(), items, 32)
            return [chosen[item.text] for item in items]


def retrieval_of(count: int, order: str) -> Changes:
    """Settings under which each prompt gets so many examples, the most similar ones."""
    return {
        **SIMILAR_ONLY,
        "retrieval": {
            **SIMILAR_ONLY["retrieval"],
            "num_examples": count,
            "max_examples": count,
            "order": order,
        },
    }
