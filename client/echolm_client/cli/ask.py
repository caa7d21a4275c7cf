"""``echolm ask``: get an answer."""

from __future__ import annotations

import argparse
import dataclasses
import json

from echolm_client._client import AnswerStream
from echolm_client._types import Answer, GenerateOptions
from echolm_client.cli.answers import RememberedAnswer, remember
from echolm_client.cli.arguments import Subparsers, add_verb
from echolm_client.cli.connection import add_connection, connected
from echolm_client.cli.console import note, read_stdin, write
from echolm_client.cli.exit_codes import OK


def add_subcommand(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Add ``ask``."""
    parser = add_verb(
        subparsers,
        "ask",
        help="ask EchoLM something",
        description="Ask EchoLM something. The answer goes to standard output, a line about it "
        "to standard error; its feedback token is remembered for 'echolm rate' and "
        "'echolm prefer'.",
    )
    parser.add_argument("text", help="the request; '-' reads it from standard input")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="print the answer while it is generated (the default)",
    )
    parser.add_argument("--llm", help="ask this LLM instead of letting the router choose")
    parser.add_argument("--max-tokens", type=int, help="most tokens to generate")
    parser.add_argument("--temperature", type=float, help="0 is greedy")
    parser.add_argument("--top-p", type=float, help="nucleus sampling, 0 to 1")
    parser.add_argument("--top-k", type=int, help="sample among this many tokens")
    parser.add_argument("--seed", type=int, help="make sampling repeatable")
    parser.add_argument(
        "--stop", action="append", metavar="WORD", help="end before this word; may be repeated"
    )
    parser.add_argument("--system", metavar="PROMPT", help="system prompt")
    parser.add_argument("--tenant", help="whose examples to use and to learn for")
    parser.add_argument(
        "--cache-control",
        metavar="MODE",
        help="default; no-store: learn nothing from it; no-examples: use none; no-cache: both",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as one JSON object")
    add_connection(parser)
    parser.set_defaults(func=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Ask, print, remember; returns the exit code."""
    text = read_stdin() if args.text == "-" else args.text
    options: GenerateOptions = {
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "seed": args.seed,
        "stop_words": args.stop,
        "system_prompt": args.system,
        "tenant": args.tenant,
        "cache_control": args.cache_control,
        "llm": args.llm,
    }
    with connected(args) as client:
        if args.json:
            answer = client.generate(text, **options)
            write(json.dumps(dataclasses.asdict(answer), ensure_ascii=False) + "\n")
        elif args.stream:
            answer = _print_stream(client.stream(text, **options))
        else:
            answer = client.generate(text, **options)
            write(answer.text + "\n")
    if not args.json:
        note(summary(answer))
    if answer.feedback_token:
        remember(RememberedAnswer(args.url, answer.feedback_token))
    return OK


def summary(answer: Answer) -> str:
    """One line about an answer."""
    examples = len(answer.example_ids)
    parts = [
        answer.llm or "unknown LLM",
        f"{examples} example{'' if examples == 1 else 's'}",
        f"predicted quality {answer.predicted_quality:.2f}",
        f"{answer.num_input_tokens} + {answer.num_output_tokens} tokens",
        f"{answer.latency_s:.2f} s",
    ]
    if answer.degraded:
        parts.append(f"degraded: {answer.degraded}")
    if answer.solicit_feedback:
        parts.append("please rate")
    if answer.feedback_token:
        parts.append(f"token {answer.feedback_token}")
    return " | ".join(parts)


def _print_stream(stream: AnswerStream) -> Answer:
    printed = False
    with stream:
        try:
            for piece in stream:
                write(piece)
                printed = True
        finally:
            # Also before an error's message, which would else continue the text's last line.
            if printed:
                write("\n")
    return stream.answer
