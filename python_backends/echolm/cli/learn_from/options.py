"""Options of ``echolm learn-from`` that are checked by the configuration, or have a form."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from echolm_client.cli.arguments import as_number
from echolm_client.cli.console import CommandError

if TYPE_CHECKING:  # what is slow to import is imported when the command runs
    from echolm.past_traffic.cost import Price
    from echolm.settings import Settings

FORMATS = ("openai", "openai-batch", "litellm", "langfuse", "csv")
FIELDS = ("request", "response", "system_prompt", "model", "finish_reason")


def amount(text: str) -> float:
    """A number above 0, for argparse."""
    value = as_number(text.replace("_", ""))
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected an amount above 0, got {text!r}")
    return value


def share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    value = as_number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def logged_llms(args: argparse.Namespace, settings: Settings) -> dict[str, str]:
    """LLMs by the logged models whose answers count as theirs; CommandError if there is none."""
    llms = dict(args.map)
    if args.strongest:
        llms[args.strongest] = settings.reference_llm.name
    names = [llm.name for llm in settings.llms]
    if unknown := sorted(set(llms.values()) - set(names)):
        raise CommandError(f"--map: expected LLMs among {names}, got {unknown}")
    return llms


def prices_of(args: argparse.Namespace, settings: Settings) -> dict[str, Price]:
    """Prices by LLM, none or all of them; CommandError if they are not numbers."""
    from echolm.past_traffic.cost import Price

    prices = {}
    for name, text in args.price:
        read, colon, written = text.partition(":")
        price = Price(as_number(read), as_number(written if colon else read))
        if not (0 <= price.read < float("inf") and 0 <= price.written < float("inf")):
            raise CommandError(f"--price: expected LLM=INPUT:OUTPUT, got {name}={text}")
        prices[name] = price
    names = {llm.name for llm in settings.llms}
    if prices and prices.keys() != names:
        raise CommandError(
            f"--price: expected one for each of {sorted(names)}, got {sorted(prices)}"
        )
    return prices
