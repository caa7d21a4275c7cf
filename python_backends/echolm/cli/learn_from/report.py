"""What ``echolm learn-from`` says: the cost before it starts, and what routing will bring."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from echolm_client.cli.console import CommandError, note, terminal_width
from echolm_client.cli.table import Column, table

from echolm.cli.learn_from.reading import Read

if TYPE_CHECKING:  # what is slow to import is imported when the command runs
    from echolm.past_traffic.cost import Price, Tokens
    from echolm.past_traffic.replay import PastReplay


def confirmed(args: argparse.Namespace, read: Read, replay: PastReplay) -> bool:
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


def report_replay(
    args: argparse.Namespace,
    replay: PastReplay,
    read: Read,
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
