#!/usr/bin/env python3
"""Record the large LLM's answers to past requests of the demo workload.

Every deployment of EchoLM begins with a past in which the large LLM answered alone. The demo and
the evaluation begin with this recorded one, since a CPU takes many minutes to answer so much;
record it anew after training another large LLM. Writes JSON lines with ``request`` and
``response``, in the order of the workload's stream.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from echolm.errors import EchoError, UnavailableError
from echolm.serving.serve import ServeOptions, running_server
from echolm.settings.loading import load_settings
from echolm_client import AsyncClient
from echolm_lab.experiments.load import closed_loop
from echolm_lab.policies.llm import LLMPolicy
from echolm_lab.report.progress import Stage
from echolm_lab.tasks import PastInteraction
from echolm_lab.tasks.past import PAST_FILE, past_items, write_past
from rich.console import Console


async def record(
    grpc_url: str, options: argparse.Namespace, console: Console
) -> list[PastInteraction]:
    """The requests with their answers."""
    items = past_items(options.count)
    async with AsyncClient(grpc_url) as client:
        large = LLMPolicy("always_large", client, "large_llm", "no-cache")
        with Stage(console, "the large LLM answers", len(items)) as stage:
            run = await closed_loop(large, items, options.concurrency, stage.step)
    if run.failed:
        errors = {record.error for record in run.records if record.error}
        raise UnavailableError(f"{run.failed} of {len(items)} requests failed: {min(errors)}")
    answered = zip(items, run.records, strict=True)  # both are in the order of the requests
    return [PastInteraction(item, r.reply.text) for item, r in answered if r.reply is not None]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=3_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--output", type=Path, default=PAST_FILE)
    options = parser.parse_args(argv)
    console = Console()
    with tempfile.TemporaryDirectory() as directory:
        settings = load_settings(None).model_copy(update={"data_dir": Path(directory)})
        serve = ServeOptions(http_port=0, grpc_port=0, metrics_port=0)
        try:
            with running_server(settings, serve, progress=console.print) as endpoints:
                interactions = asyncio.run(record(endpoints.grpc_url, options, console))
        except EchoError as error:
            console.print(f"record_past: {error}", style="red", markup=False)
            return 1
    write_past(options.output, interactions)
    console.print(f"{len(interactions)} interactions written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
