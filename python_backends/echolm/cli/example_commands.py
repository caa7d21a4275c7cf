"""``echolm examples``: look into the example store, take out, put in, check.

Works on a running server's store as on one at rest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from echolm.embedding.spec import EmbedderSpec
from echolm.errors import ConfigurationError, InvalidRequestError
from echolm.examples import transfer
from echolm.examples.consistency import examine, repair
from echolm.examples.events import CHANGE, change
from echolm.examples.replay import ReplayCost, Replayer
from echolm.examples.statistics import StatisticsTable
from echolm.examples.write_ahead_log import WriteAheadLog
from echolm.learning.event_log import EventLog
from echolm.serving.attach import attached
from echolm.serving.data_dir import milvus_database
from echolm.serving.milvus_lite import vacuum
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from echolm.store.base import NEVER, Example, Stored
from echolm.store.milvus import MilvusStore
from echolm.wiring import open_event_log

_BATCH = 250
_SETTLE_S = 1.0


@dataclass
class Opened:
    """Everything that examples are kept in."""

    settings: Settings
    store: MilvusStore
    statistics: StatisticsTable
    log: EventLog
    write_ahead_log: WriteAheadLog


@contextmanager
def opened(settings: Settings) -> Iterator[Opened]:
    """Store, statistics and logs of a data directory, with the statistics up to date.

    Raises:
        ConfigurationError, UnavailableError: a part cannot be used.
    """
    with ExitStack() as closing:
        found = closing.enter_context(attached(settings))
        embedding = EmbedderSpec.read(found.embedding.model_dir)
        store = MilvusStore(found.retrieval, embedding.name, embedding.dimension)
        closing.callback(store.close)
        log = open_event_log(found)
        closing.callback(log.close)
        statistics = StatisticsTable(
            found.statistics_path, found.relative_costs, found.examples.value_decay
        )
        closing.callback(statistics.close)
        statistics.follow(log)
        write_ahead_log = WriteAheadLog(found.write_ahead_log_path, found.examples.max_pending)
        closing.callback(write_ahead_log.close)
        yield Opened(found, store, statistics, log, write_ahead_log)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand that :mod:`echolm.cli.examples` has parsed; returns the exit status."""
    settings = load_settings(args.config)
    if args.data_dir is not None:
        settings = settings.model_copy(update={"data_dir": args.data_dir})
    with opened(settings) as found:
        return _COMMANDS[args.examples_command](found, args)


def _stats(found: Opened, args: argparse.Namespace) -> int:
    count, num_bytes = found.statistics.totals()
    limits = found.settings.examples
    figures = {
        "stored": found.store.count(),
        "accounts": count,
        "bytes": num_bytes,
        "max_stored": limits.max_stored,
        "max_stored_bytes": limits.max_stored_bytes,
        "pending": len(found.write_ahead_log),
        "removed": found.statistics.removals(),
    }
    if args.json:
        print(json.dumps(figures))
        return 0
    print(f"stored    {figures['stored']} of at most {limits.max_stored}")
    print(f"bytes     {num_bytes} of at most {limits.max_stored_bytes}")
    print(f"pending   {figures['pending']} admitted, not stored yet")
    for reason, number in sorted(found.statistics.removals().items()):
        print(f"removed   {number} {reason}")
    return 0


def _top(found: Opened, args: argparse.Namespace) -> int:
    accounts = found.statistics.ranked(args.by, args.number)
    texts = {example.id: example for example, _ in found.store.get([a.id for a in accounts])}
    if args.json:
        for account in accounts:
            example = texts.get(account.id)
            request = example.request if example else None
            print(json.dumps({**asdict(account), "request": request}, ensure_ascii=False))
        return 0
    table = Table(box=None)
    for column in ("id", "value", "uses", "ratings", "gain", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("request", overflow="ellipsis", no_wrap=True)
    for account in accounts:
        example = texts.get(account.id)
        table.add_row(
            str(account.id),
            f"{account.value:.2f}",
            str(account.uses),
            str(account.ratings),
            f"{account.gain:.3f}",
            str(account.num_bytes),
            escape(example.request if example else "(not in the store)"),
        )
    Console().print(table)
    return 0


def _show(found: Opened, args: argparse.Namespace) -> int:
    stored = {example.id: example for example, _ in found.store.get(args.id)}
    for id in args.id:
        example = stored.get(id)
        if example is None:
            print(f"echolm examples: no example has the id {id}", file=sys.stderr)
            continue
        account = found.statistics.get(id)
        shown = {
            **asdict(example),
            "created_at": _time(example.created_at_ms),
            "expires_at": None if example.expires_at_ms >= NEVER else _time(example.expires_at_ms),
            "account": account and asdict(account),
        }
        print(json.dumps(shown, ensure_ascii=False, indent=1))
    return 0 if len(stored) == len(set(args.id)) else 1


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1_000, timezone.utc).isoformat(timespec="seconds")


def _delete(found: Opened, args: argparse.Namespace) -> int:
    if not args.id and args.tenant is None and args.match is None:
        raise InvalidRequestError("delete: expected --id, --tenant or --match, got none of them")
    try:
        pattern = None if args.match is None else re.compile(args.match)
    except re.error as error:
        raise InvalidRequestError(
            f"delete: --match: expected a regular expression, got {args.match!r}: {error}"
        ) from error

    def concerns(example: Example) -> bool:
        return (
            (not args.id or example.id in args.id)
            and (args.tenant is None or example.tenant == args.tenant)
            and (pattern is None or any(map(pattern.search, (example.request, example.response))))
        )

    def find() -> tuple[list[int], list[int]]:
        """Ids in the store and in the write_ahead_log."""
        if args.id:
            candidates: Iterator[Sequence[Stored]] = iter([found.store.get(args.id)])
        else:
            candidates = found.store.scan(args.tenant)
        ids = [e.id for batch in candidates for e, _ in batch if concerns(e)]
        waiting = found.write_ahead_log.oldest(found.settings.examples.max_pending)
        return ids, [e.id for e, _ in waiting if concerns(e)]

    ids, pending = find()
    total = set(ids) | set(pending)
    if not total:
        print("no such examples")
        return 0
    if not args.yes and input(f"delete {len(total)} examples for good? [y/N] ").lower() != "y":
        print("nothing was deleted")
        return 1
    while ids or pending:
        total |= set(ids) | set(pending)
        found.write_ahead_log.remove(pending)
        for start in range(0, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            found.store.delete(part)
            found.log.append(CHANGE, change(removed=part, reason="deleted"))
        # A running server may just be writing what it had read from its write_ahead_log before.
        time.sleep(_SETTLE_S)
        ids, pending = find()
    found.write_ahead_log.wipe()
    if found.settings.retrieval.milvus_uri.startswith("unix:"):
        vacuum(milvus_database(found.settings.data_dir))
    else:
        found.store.compact()
    found.statistics.follow(found.log)
    print(f"deleted {len(total)} examples")
    return 0


def _export(found: Opened, args: argparse.Namespace) -> int:
    spec = EmbedderSpec.read(found.settings.embedding.model_dir)
    header = transfer.Header(spec.name, spec.dimension)
    done = 0
    with _writing(args.file) as stream, _progress("exporting", found.store.count()) as advance:
        for count in transfer.write(stream, header, found.store.scan(args.tenant)):
            done += count
            advance(count)
    print(f"exported {done} examples", file=sys.stderr)
    return 0


def _import(found: Opened, args: argparse.Namespace) -> int:
    with _reading(args.file) as stream:
        header = transfer.read_header(stream)
        batches = transfer.batched(transfer.read(stream, header))
        return _take_in(found, "importing", batches, header, None)


def _reembed(found: Opened, args: argparse.Namespace) -> int:
    if args.source == found.settings.retrieval.collection:
        raise InvalidRequestError(
            f"reembed: --from: expected another collection than retrieval.collection, got "
            f"{args.source!r}; give the new embeddings a collection of their own"
        )
    source = MilvusStore.existing(
        found.settings.retrieval.model_copy(update={"collection": args.source})
    )
    try:
        header = transfer.Header(source.embedding_name, source.dimension)
        return _take_in(found, "embedding", source.scan(), header, source.count())
    finally:
        source.close()


def _take_in(
    found: Opened,
    title: str,
    batches: Iterator[Sequence[Stored]] | Iterator[list[Stored]],
    header: transfer.Header,
    total: int | None,
) -> int:
    """Copy examples into the store, embedded anew where another model had embedded them."""
    spec = EmbedderSpec.read(found.settings.embedding.model_dir)
    embed = None
    if (header.embedding, header.dimension) != (spec.name, spec.dimension):
        from echolm.embedding.texts import TextEmbedder

        embed = TextEmbedder(found.settings.embedding)
    done = 0
    with _progress(title, total) as advance:
        for examples in transfer.copy_into(found.store, batches, embed):
            found.log.append(CHANGE, change(examples))
            done += len(examples)
            advance(len(examples))
    found.statistics.follow(found.log)
    made = "" if embed is None else f", embedded anew by {spec.name}"
    print(f"took in {done} examples{made}", file=sys.stderr)
    return 0


def _check(found: Opened, args: argparse.Namespace) -> int:
    """Every example must have an account, every account an example, and no request two answers."""
    parts = (found.store, found.statistics, found.log)
    deduplicate = found.settings.examples.deduplicate
    with _progress("checking", found.store.count()) as advance:

        def scanned(examples: list[Example]) -> None:
            advance(len(examples))

        if not args.repair:
            findings = examine(*parts, scanned)
        else:
            findings = repair(*parts, deduplicate, scanned)

    def line(title: str, number: int) -> None:
        print(f"{title:25}{number}{' (mended)' if number and args.repair else ''}")

    print(f"examples                 {found.store.count()}")
    line("without an account", findings.without_statistics)
    line("accounts without example", findings.without_example)
    line("requests stored twice", findings.duplicates)
    line("half replaced", findings.interrupted)
    print(f"not stored yet           {len(found.write_ahead_log)}")
    if not deduplicate:  # then they are meant to be
        findings = replace(findings, duplicates=0)
    if args.repair or not findings.any:
        return 0
    print("echolm examples: `echolm examples check --repair` mends this", file=sys.stderr)
    return 1


def replay(args: argparse.Namespace) -> int:
    """``echolm replay``; returns the exit status."""
    settings = load_settings(args.config)
    if args.data_dir is not None:
        settings = settings.model_copy(update={"data_dir": args.data_dir})
    with opened(settings) as found:
        return asyncio.run(_replay(found, args))


async def _replay(found: Opened, args: argparse.Namespace) -> int:
    from echolm.embedding.texts import TextEmbedder
    from echolm.load.tracker import LoadTracker
    from echolm.wiring import build_endpoints, build_judge, build_llm_clients

    settings = found.settings
    if settings.judging.kind == "none":
        raise ConfigurationError(
            "replay: expected a judge in judging.kind, got 'none': nothing else says which "
            "answer is better"
        )

    class Embedder:
        """The embedder of this process, as judges want it."""

        embed_texts = TextEmbedder(settings.embedding)

        async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return self.embed_texts(texts)

    targets = build_endpoints(settings, build_llm_clients(settings))
    judge = build_judge(settings, targets, Embedder(), LoadTracker())
    assert judge is not None
    replayer = Replayer(found.store, found.statistics, found.log, targets, judge, settings)
    cost = ReplayCost()
    reasons: Counter[str] = Counter()
    with _progress("replaying", args.max_examples) as advance:
        async for one in replayer.run(args.max_examples):
            cost.add(one)
            if one.reason:
                reasons[one.reason] += 1
            advance(1)
    if args.json:
        print(json.dumps({**asdict(cost), "not_improved": dict(reasons)}))
        return 0
    print(f"replayed    {cost.examples} examples, {cost.improved} improved")
    for reason, number in reasons.most_common():
        print(f"            {number} {reason}")
    print(f"cost        {cost.candidates} answers, {cost.tokens} tokens, {cost.seconds:.0f} s")
    return 0


_COMMANDS: dict[str, Callable[[Opened, argparse.Namespace], int]] = {
    "stats": _stats,
    "top": _top,
    "show": _show,
    "delete": _delete,
    "export": _export,
    "import": _import,
    "reembed": _reembed,
    "check": _check,
}


@contextmanager
def _writing(file: str) -> Iterator[TextIO]:
    if file == "-":
        yield sys.stdout
        return
    try:
        with open(file, "w", encoding="utf-8") as stream:
            yield stream
    except OSError as error:
        raise InvalidRequestError(f"{file}: expected to write it, got: {error.strerror}") from error


@contextmanager
def _reading(file: str) -> Iterator[TextIO]:
    if file == "-":
        yield sys.stdin
        return
    try:
        with open(file, encoding="utf-8") as stream:
            yield stream
    except OSError as error:
        raise InvalidRequestError(f"{file}: expected to read it, got: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{file}: expected UTF-8, got: {error}") from error


@contextmanager
def _progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
