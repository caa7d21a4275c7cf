"""Command lines ``ask``, ``rate`` and ``stats``, for the console script to assemble.

Exit codes: 0 done, 1 the server failed or cannot be reached, 2 the request or the command
line is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from echolm_client._client import AnswerStream, Client
from echolm_client._config import DEFAULT_TIMEOUT_S, DEFAULT_URL
from echolm_client._errors import EchoLMError, InvalidRequest, Unavailable
from echolm_client._types import Answer, GenerateOptions, Sample, Stats

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

OpenClient = Callable[..., Client]
"""Makes a client; takes the arguments of :class:`Client`."""


def add_subcommands(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    open_client: OpenClient = Client,
) -> None:
    """Add ``ask``, ``rate`` and ``stats``.

    Each sets ``func``, to be called with the parsed arguments; it returns the exit code.

    Args:
        open_client: replaces :class:`Client`, for tests.
    """
    ask = subparsers.add_parser(
        "ask", help="ask EchoLM something", description="Ask EchoLM something."
    )
    ask.add_argument("text", help="the request; '-' reads it from standard input")
    ask.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="print the answer while it is generated (the default)",
    )
    ask.add_argument("--llm", help="ask this LLM instead of letting the router choose")
    ask.add_argument("--max-tokens", type=int, help="most tokens to generate")
    ask.add_argument("--temperature", type=float, help="0 is greedy")
    ask.add_argument("--top-p", type=float, help="nucleus sampling, 0 to 1")
    ask.add_argument("--top-k", type=int, help="sample among this many tokens")
    ask.add_argument("--seed", type=int, help="make sampling repeatable")
    ask.add_argument(
        "--stop", action="append", metavar="WORD", help="end before this word; may be repeated"
    )
    ask.add_argument("--system", metavar="PROMPT", help="system prompt")
    ask.add_argument("--tenant", help="whose examples to use and to learn for")
    ask.add_argument(
        "--cache-control",
        metavar="MODE",
        help="default; no-store: learn nothing from it; no-examples: use none; no-cache: both",
    )
    ask.add_argument("--json", action="store_true", help="print the answer as one JSON object")
    _add_connection(ask)
    _set(ask, _ask, open_client)

    rate = subparsers.add_parser(
        "rate",
        help="rate an answer",
        description="Rate the last answer of 'echolm ask', or that of a token.",
    )
    rate.add_argument("score", type=float, help="from 0 (useless) to 1 (perfect)")
    rate.add_argument("--token", help="feedback token of the answer (default: the last answer's)")
    rate.add_argument("--tenant", help="refuse the token if the answer is not this tenant's")
    _add_connection(rate, default_url=None)
    _set(rate, _rate, open_client)

    stats = subparsers.add_parser(
        "stats", help="show what the server counts", description="Show what the server counts."
    )
    stats.add_argument("--json", action="store_true", help="print one JSON object")
    stats.add_argument(
        "--metrics-url", metavar="URL", help="metrics page (default: port 8002 of the same host)"
    )
    _add_connection(stats)
    _set(stats, _stats, open_client)


def _add_connection(parser: argparse.ArgumentParser, default_url: str | None = DEFAULT_URL) -> None:
    shown = default_url or "the last answer's"
    parser.add_argument(
        "--url",
        default=default_url,
        help=f"server, [grpc|grpcs|http|https://]host[:port] (default: {shown})",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="give up after this many seconds (default: %(default)g)",
    )


def _set(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace, OpenClient], int],
    open_client: OpenClient,
) -> None:
    parser.set_defaults(func=lambda args: _guarded(command, args, open_client))


def _guarded(
    command: Callable[[argparse.Namespace, OpenClient], int],
    args: argparse.Namespace,
    open_client: OpenClient,
) -> int:
    """Run a command; whatever goes wrong becomes a message and an exit code."""
    try:
        return command(args, open_client)
    except (InvalidRequest, ValueError) as error:
        return _complain(str(error), USAGE)
    except Unavailable as error:
        url = getattr(args, "url", None) or DEFAULT_URL
        return _complain(f"{error} (asked {url}; is the server running? see --url)", FAILED)
    except EchoLMError as error:
        return _complain(str(error), FAILED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader has left (`| head`). Python would complain at exit when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _ask(args: argparse.Namespace, open_client: OpenClient) -> int:
    text = sys.stdin.read() if args.text == "-" else args.text
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
    with open_client(args.url, timeout=args.timeout) as client:
        if args.json:
            answer = client.generate(text, **options)
            _print(json.dumps(dataclasses.asdict(answer), ensure_ascii=False) + "\n")
        elif args.stream:
            answer = _print_stream(client.stream(text, **options))
        else:
            answer = client.generate(text, **options)
            _print(answer.text + "\n")
    if not args.json:
        _print(summary(answer) + "\n", sys.stderr)
    if answer.feedback_token:
        LastAnswer(args.url, answer.feedback_token).save()
    return OK


def _print_stream(stream: AnswerStream) -> Answer:
    printed = False
    with stream:
        try:
            for piece in stream:
                _print(piece)
                printed = True
        finally:
            # Also before an error's message, which would else continue the text's last line.
            if printed:
                _print("\n")
    return stream.answer


def _rate(args: argparse.Namespace, open_client: OpenClient) -> int:
    token = args.token
    if not token:
        last = LastAnswer.load()
        if last is None:
            return _complain("no last answer to rate; ask first, or give --token", USAGE)
        token = last.token
        args.url = args.url or last.url
    with open_client(args.url or DEFAULT_URL, timeout=args.timeout) as client:
        if not client.rate(token, args.score, tenant=args.tenant):
            return _complain("the server did not accept the rating", FAILED)
    _print(f"rated {args.score:g}\n")
    return OK


def _stats(args: argparse.Namespace, open_client: OpenClient) -> int:
    with open_client(args.url, timeout=args.timeout, metrics_url=args.metrics_url) as client:
        stats = client.stats()
    _print(json.dumps(dataclasses.asdict(stats)) + "\n" if args.json else table(stats))
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


def table(stats: Stats) -> str:
    """The statistics in columns."""
    # Buckets are for machines; count and sum of a histogram stay.
    samples = [sample for sample in stats.samples if not sample.name.endswith("_bucket")]
    models = sorted((model, f"{count}") for model, count in stats.inferences.items())
    own = sorted((_title(sample), f"{sample.value:g}") for sample in samples)
    lines = _columns([("MODEL", "INFERENCES"), *models])
    if own:
        lines += ["", *_columns([("METRIC", "VALUE"), *own])]
    return "\n".join(lines) + "\n"


def _title(sample: Sample) -> str:
    labels = ", ".join(f"{key}={value}" for key, value in sample.labels.items())
    return f"{sample.name} {labels}".rstrip()


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    left = max(len(name) for name, _ in rows)
    right = max(len(value) for _, value in rows)
    return [f"{name:<{left}}  {value:>{right}}" for name, value in rows]


@dataclasses.dataclass(frozen=True)
class LastAnswer:
    """What ``echolm rate`` needs of the last answer; no text of anyone's."""

    url: str
    token: str

    @staticmethod
    def path() -> Path:
        """In the user's cache directory."""
        base = os.environ.get("XDG_CACHE_HOME", "")
        # The specification says to ignore a relative path.
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
        return root / "echolm" / "last_answer.json"

    def save(self) -> None:
        """Remember it; a cache that cannot be written is reported and costs nothing else."""
        path = self.path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")
            # The token lets its holder rate the answer: it is for this user only.
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                json.dump(dataclasses.asdict(self), file)
            temporary.replace(path)
        except OSError as error:
            _complain(f"the last answer is not remembered: {error}", OK)

    @classmethod
    def load(cls) -> LastAnswer | None:
        """The last one saved; None if there is none that can be read."""
        try:
            value: Any = json.loads(cls.path().read_text())
            return cls(str(value["url"]), str(value["token"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _print(text: str, file: TextIO | None = None) -> None:
    """Write at once; a character that the terminal cannot show becomes a question mark."""
    file = file or sys.stdout
    try:
        file.write(text)
    except UnicodeEncodeError:
        encoding = file.encoding or "ascii"
        file.write(text.encode(encoding, "replace").decode(encoding))
    file.flush()


def _complain(message: str, code: int) -> int:
    _print(f"echolm: {message}\n", sys.stderr)
    return code
