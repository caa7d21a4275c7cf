"""``echolm learn-from``: past traffic becomes examples, and shows when the small LLM will do."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echolm_client.cli.arguments import Subparsers, add_verb, key_value, positive
from echolm_client.cli.console import CommandError, note, terminal_width, write
from echolm_client.cli.exit_codes import FAILED
from echolm_client.cli.table import Column, table

from echolm.cli.data_directory import add_options
from echolm.cli.examples.data import ExampleData, opened, progress, write_report

if TYPE_CHECKING:  # what is slow to import is imported when the command runs
    import numpy as np
    from numpy.typing import NDArray

    from echolm.embedding.texts import TextEmbedder
    from echolm.past_traffic.cost import Price, Tokens
    from echolm.past_traffic.log import PastLog, Skips
    from echolm.past_traffic.record import Logged
    from echolm.past_traffic.replay import PastReplay
    from echolm.past_traffic.state import PastTrafficState
    from echolm.past_traffic.storing import PastExamples
    from echolm.settings import Settings
    from echolm.wiring.past_traffic import PastLearning

_MEASURED = 4_096  # requests from which request statistics are made
_MAINTAINED_EVERY = 64  # batches
_FORMATS = ("openai", "openai-batch", "litellm", "langfuse", "csv")
_FIELDS = ("request", "response", "system_prompt", "model", "finish_reason")


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "learn-from",
        help="learn from the log of another front door",
        description="Take requests and answers of a log: those of one turn of text that are "
        "complete and pass screening become examples. Then the other LLMs answer a sample of the "
        "requests, with examples (never the request's own) and without, the judge of the "
        "configuration compares their answers with the logged ones, and the router learns. It "
        "tells what that costs and asks before it begins, may be interrupted, and goes on where "
        "it ended. Ends with what routing requests like these will bring. Works while a server "
        "runs on the data directory, whose LLMs it asks, and, with --no-replay, while none does.",
    )
    parser.add_argument(
        "log",
        type=Path,
        nargs="+",
        metavar="LOG",
        help="JSON lines, a JSON array, or CSV (.csv), also packed (.gz); a batch's input and "
        "output file together",
    )
    add_options(parser)
    reading = parser.add_argument_group("the log")
    reading.add_argument(
        "--format",
        choices=_FORMATS,
        default="",
        help="default: the one that the records are recognised by",
    )
    reading.add_argument(
        "--column",
        type=key_value,
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help=f"name of the CSV column that holds a field: {', '.join(_FIELDS)} (default: the "
        "field's name)",
    )
    reading.add_argument(
        "--tenant", default="public", help="whose requests they are (default: %(default)s)"
    )
    reading.add_argument(
        "--tenant-from",
        default="",
        metavar="FIELD",
        help="field that names each record's tenant, as metadata.team or a CSV column; records "
        "without it are skipped",
    )
    reading.add_argument(
        "--map",
        type=key_value,
        action="append",
        default=[],
        metavar="MODEL=LLM",
        help="answers of this logged model (may have * in it) count as this LLM's, and those of "
        "models that are not named are skipped (default: all count as the strongest LLM's)",
    )
    reading.add_argument(
        "--strongest", metavar="MODEL", help="the same as --map with the strongest LLM"
    )
    reading.add_argument(
        "--strict", action="store_true", help="stop at the first record that cannot be read"
    )
    asking = parser.add_argument_group("the replay")
    asking.add_argument(
        "--no-replay", action="store_true", help="only store examples; no LLM is asked"
    )
    asking.add_argument(
        "--sample",
        type=positive,
        default=400,
        metavar="N",
        help="requests that are replayed (default: %(default)s)",
    )
    asking.add_argument(
        "--concurrent",
        type=positive,
        default=8,
        metavar="N",
        help="answers and judgements at a time (default: %(default)s)",
    )
    asking.add_argument(
        "--price",
        type=key_value,
        action="append",
        default=[],
        metavar="LLM=INPUT:OUTPUT",
        help="money for a million tokens that an LLM reads and writes; for all LLMs or none",
    )
    asking.add_argument(
        "--budget",
        type=_amount,
        metavar="AMOUNT",
        help="most that all replays of this log may cost: money with --price, tokens without",
    )
    asking.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--quality",
        type=_share,
        default=0.49,
        metavar="SHARE",
        help="win rate against the logged answers, ties half, for which the cost weight is "
        "wanted (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def _amount(text: str) -> float:
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected an amount above 0, got {text!r}")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    """Read, tell the cost, ask, store, replay and report; returns the exit code."""
    from echolm.wiring.past_traffic import only_process

    with opened(args, must_exist=False) as data, closing(only_process(data.settings)):
        return asyncio.run(_learn(args, data))


@dataclass
class _Read:
    """What reading the log has found.

    Attributes:
        usable: interactions that can be learnt from.
        sample: those that are replayed, in their order.
        measured: those of which request statistics are made.
    """

    log: PastLog
    fingerprint: str
    skips: Skips
    usable: int = 0
    sample: list[Logged] = field(default_factory=list)
    measured: list[Logged] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, Any]:
        skipped = {
            reason: {"count": count, "first": self.skips.first[reason]}
            for reason, count in self.skips.counts.most_common()
        }
        records = self.usable + self.skips.counts.total()
        return {
            "format": self.log.format.name,
            "records": records,
            "usable": self.usable,
            "skipped": skipped,
        }

    @property
    def lines(self) -> list[str]:
        figures = self.figures
        lines = [
            f"read        {figures['records']} records of format {figures['format']}, "
            f"{self.usable} of them usable"
        ]
        lines += [
            f"            {entry['count']} skipped: {reason} (first: {entry['first']})"
            for reason, entry in figures["skipped"].items()
        ]
        return lines


class _Embedder:
    """The embedder of this process, as judges want it."""

    def __init__(self, embed_texts: TextEmbedder) -> None:
        self._embed_texts = embed_texts

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._embed_texts(texts)


async def _learn(args: argparse.Namespace, data: ExampleData) -> int:
    from echolm.wiring.past_traffic import (
        build_past_examples,
        build_past_learning,
        open_past_traffic_state,
    )
    from echolm.wiring.retrieval import build_text_embedder

    settings = data.settings
    prices = _prices(args, settings)
    embed = build_text_embedder(settings)
    learning = build_past_learning(settings, data.log)
    examples = build_past_examples(settings, data.store, data.log, embed, learning)
    with closing(open_past_traffic_state(settings)) as state:
        read = _read(args, settings)
        figures: dict[str, Any] = {"log": read.figures}
        lines = read.lines
        replay = None
        if not args.no_replay and read.usable:
            from echolm.past_traffic.cost import Budget
            from echolm.wiring.llms import build_endpoints
            from echolm.wiring.past_traffic import build_past_replay

            budget = Budget(args.budget, prices, settings.judge_llm.name)
            endpoints = build_endpoints(settings)
            replay = build_past_replay(
                settings,
                examples,
                learning,
                state,
                budget,
                endpoints,
                _Embedder(embed),
                read.fingerprint,
                args.concurrent,
                data.store.dimension,
            )
            await replay.probe()
            replay.recall()
            if not _confirmed(args, read, replay):
                write("nothing was stored or replayed\n")
                return FAILED
        learning.learner.catch_up()
        stored = _store(data, examples, learning, read, state)
        figures["stored"] = dict(stored)
        lines += [f"{'stored' if k == 0 else '':12}{n} {why}" for k, (why, n) in enumerate(stored)]
        statistics = _measure(data, examples, learning, read)
        figures["request_statistics"] = statistics
        if statistics:
            lines.append(f"statistics  of {statistics['count']} requests")
        if replay is not None:
            await _replay(replay, read.sample)
            _report_replay(args, replay, read, figures, lines)
    return write_report(args, figures, lines)


def _read(args: argparse.Namespace, settings: Settings) -> _Read:
    """Read the log once: count, and draw the samples."""
    from echolm.past_traffic.acceptance import Acceptance
    from echolm.past_traffic.log import Skips, fingerprint, open_log
    from echolm.past_traffic.sample import HashSample

    reference = settings.reference_llm.name
    columns = dict(args.column)
    if unknown := sorted(columns.keys() - set(_FIELDS)):
        raise CommandError(f"--column: expected fields among {list(_FIELDS)}, got {unknown}")
    log = open_log(
        args.log,
        args.format,
        tenant=args.tenant,
        tenant_from=args.tenant_from,
        columns=columns,
        accept=Acceptance(settings, _llms(args, settings), reference),
        strict=args.strict,
    )
    read = _Read(log, fingerprint(args.log), Skips())
    sample, measured = HashSample(0 if args.no_replay else args.sample), HashSample(_MEASURED)
    size = sum(path.stat().st_size for path in args.log)
    with progress("reading (bytes)", size) as advance:
        for logged in log.read(read.skips, advance):
            read.usable += 1
            measured.offer(logged)
            if logged.llm == reference and logged.tenant not in settings.judging.exclude_tenants:
                sample.offer(logged)
    read.sample, read.measured = sample.all(), measured.all()
    return read


def _llms(args: argparse.Namespace, settings: Settings) -> dict[str, str]:
    llms = dict(args.map)
    if args.strongest:
        llms[args.strongest] = settings.reference_llm.name
    names = [llm.name for llm in settings.llms]
    if unknown := sorted(set(llms.values()) - set(names)):
        raise CommandError(f"--map: expected LLMs among {names}, got {unknown}")
    return llms


def _prices(args: argparse.Namespace, settings: Settings) -> dict[str, Price]:
    from echolm.past_traffic.cost import Price

    prices = {}
    for name, text in args.price:
        read, colon, written = text.partition(":")
        try:
            price = Price(float(read), float(written if colon else read))
        except ValueError:
            price = Price(-1.0, -1.0)
        if not (0 <= price.read < float("inf") and 0 <= price.written < float("inf")):
            raise CommandError(f"--price: expected LLM=INPUT:OUTPUT, got {name}={text}")
        prices[name] = price
    names = {llm.name for llm in settings.llms}
    if prices and prices.keys() != names:
        raise CommandError(
            f"--price: expected one for each of {sorted(names)}, got {sorted(prices)}"
        )
    return prices


def _confirmed(args: argparse.Namespace, read: _Read, replay: PastReplay) -> bool:
    """Tell the cost of what is not done yet, and ask."""
    from echolm.past_traffic.cost import expected_cost

    budget, settings = replay.budget, replay.settings
    waiting = [logged for logged in read.sample if not replay.is_done(logged)]
    costs = expected_cost(waiting, settings, replay.endpoints, replay.candidates)
    lines = [*read.lines, f"replay      {len(waiting)} of {len(read.sample)} sampled requests"]
    lines.append(table(*_cost_table(costs, replay), None).rstrip())
    total = sum(budget.cost(who, t.read, t.written) for who, t in costs.items())
    unit = "" if budget.prices else " tokens"
    if budget.spent:
        lines.append(f"spent so far: {_shown(budget.total, budget.prices)}{unit}")
    limit = "" if args.budget is None else f", at most {_shown(args.budget, budget.prices)}{unit}"
    lines.append(f"expected cost: {_shown(total, budget.prices)}{unit}{limit}")
    note("\n".join(lines))
    if args.yes:
        return True
    note("store the examples and replay? [y/N]")
    answer = sys.stdin.readline()
    if not answer:
        raise CommandError(
            "learn-from: expected an answer on standard input, got none; give --yes where nobody "
            "can be asked"
        )
    return answer.strip().lower() == "y"


def _shown(cost: float, prices: Mapping[str, Price]) -> str:
    return f"{cost:,.4f}" if prices else f"{cost:,.0f}"


def _cost_table(
    costs: Mapping[str, Tokens], replay: PastReplay
) -> tuple[list[Column], list[list[str]]]:
    """Columns and rows of what each LLM and the judge do."""
    budget, relative = replay.budget, replay.settings.relative_costs
    judge = replay.settings.judge_llm.name
    columns = [Column("who", is_text=True)]
    columns += map(Column, ("answers", "tokens read", "written"))
    columns.append(Column("money" if budget.prices else "relative cost"))
    rows = []
    for who, tokens in costs.items():
        cost = budget.cost(who, tokens.read, tokens.written)
        if not budget.prices:
            works = replay.settings.judging.kind == "llm" or who != "judge"
            cost = tokens.answers * relative[judge if who == "judge" else who] * works
        figures = (tokens.answers, tokens.read, tokens.written)
        shown = f"{cost:,.4f}" if budget.prices else f"{cost:,.1f}"
        rows.append([who, *(f"{n:,.0f}" for n in figures), shown])
    return columns, rows


def _store(
    data: ExampleData,
    examples: PastExamples,
    learning: PastLearning,
    read: _Read,
    state: PastTrafficState,
) -> list[tuple[str, int]]:
    """Store what is not stored yet; gives what became of all interactions."""
    from echolm.learning.request_sample import NewestStatistics
    from echolm.wiring.examples import build_maintenance

    newest = NewestStatistics(data.store.dimension)
    newest.statistics = learning.featurizer.statistics
    parts = (data.store, data.statistics, data.log)
    owner = f"learn-from:{read.fingerprint}"
    maintenance = build_maintenance(data.settings, *parts, owner, newest)
    with progress("storing", read.usable) as advance:
        for number, count in enumerate(examples.store_log(read.log, read.fingerprint, state), 1):
            advance(count)
            if number % _MAINTAINED_EVERY == 0:
                maintenance.run()
    maintenance.run()
    return Counter(state.stored(read.fingerprint)[1]).most_common()


def _measure(
    data: ExampleData, examples: PastExamples, learning: PastLearning, read: _Read
) -> dict[str, Any] | None:
    """Put statistics of the log's requests into the learning log, if it has none of as many."""
    from echolm.learning.request_statistics import REQUEST_STATISTICS

    learning.learner.catch_up()
    newest = learning.featurizer.statistics
    if len(read.measured) <= newest.count:
        return None
    with progress("measuring", None):
        statistics = examples.measure(read.measured, newest.version + 1)
    if statistics is None:
        return None
    data.log.append(REQUEST_STATISTICS, statistics.body())
    learning.learner.catch_up()
    return {"version": statistics.version, "count": statistics.count}


async def _replay(replay: PastReplay, sample: Sequence[Logged]) -> None:
    with progress("replaying", len(sample)) as advance:
        async for count in replay.run(sample):
            advance(count)


def _report_replay(
    args: argparse.Namespace,
    replay: PastReplay,
    read: _Read,
    figures: dict[str, Any],
    lines: list[str],
) -> None:
    """Add what replay did and what routing will bring."""
    from echolm.past_traffic.report import outcomes
    from echolm.wiring.routing import build_bandit

    budget, settings = replay.budget, replay.settings
    served = replay.served(read.sample)
    judged = sum(1 for one in served for body in one.bodies.values() if "share" in body)
    figures["replay"] = {
        "sampled": len(read.sample),
        "answered_as_served": judged,
        "now": dict(replay.counts),
        "spent": {who: vars(tokens) for who, tokens in budget.spent.items()},
        "cost": budget.total,
        "unit": "money" if budget.prices else "tokens",
        "stopped": replay.stopped,
    }
    lines.append(f"replayed    {len(read.sample)} sampled requests")
    lines += [f"            {number} {what}" for what, number in replay.counts.most_common()]
    unit = "" if budget.prices else " tokens"
    lines.append(f"cost        {_shown(budget.total, budget.prices)}{unit}")
    if replay.stopped:
        lines.append("            stopped: the budget has no more for the next answer")
    known = outcomes(
        served,
        replay.log,
        lambda: build_bandit(settings),
        replay.reference,
        budget.cost if budget.prices else None,
    )
    figures["expected"] = None
    if known is None:
        lines.append("expected    too few requests were judged to say what routing will bring")
        return
    weight = settings.routing.cost_weight
    wished = known.for_quality(args.quality)
    now = known.at(weight)
    figures["expected"] = {
        "requests": len(known),
        "at_cost_weight": now,
        "wished_quality": args.quality,
        "for_wished_quality": wished,
        "by_cost_weight": known.table(),
    }
    lines += [
        f"expected    of requests like these, by {len(known)} that the bandit had not learnt from",
        f"            at routing.cost_weight = {weight:g}: {_percent(now['offload'])} offloaded, "
        f"win rate {_number(now['quality'])}",
        f"            cost of {_saved(now)} of the strongest LLM's",
    ]
    if wished is None:
        lines.append(f"            no cost weight has a win rate of {args.quality:g}")
    else:
        lines.append(
            f"            for a win rate of {args.quality:g}: routing.cost_weight = "
            f"{wished['cost_weight']:g} ({_percent(wished['offload'])} offloaded)"
        )
    columns = [Column(name) for name in ("cost weight", "offload", "win rate", "cost")]
    rows = [
        [f"{r['cost_weight']:g}", _percent(r["offload"]), _number(r["quality"]), _saved(r)]
        for r in known.table()
    ]
    lines.append(table(columns, rows, terminal_width()).rstrip())


def _percent(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.1%} ± {estimate['standard_error']:.1%}"


def _number(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3f} ± {estimate['standard_error']:.3f}"


def _saved(row: Mapping[str, Any]) -> str:
    whole = row["cost_of_reference"]["value"]
    return f"{row['cost']['value'] / whole:.0%}" if whole else "nothing"
