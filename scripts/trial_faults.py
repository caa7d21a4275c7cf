#!/usr/bin/env python3
"""Kill or stop random processes of a server under load, and show what its callers notice.

A server with the shipped pair of LLMs is started for it. Each time one process (Triton, a model's,
Milvus Lite, the gateway) gets SIGKILL or SIGSTOP, and the next one when all is well again. Prints a
table and ends with one JSON line. The exit status is 1 if a rating that was acknowledged is lost, a
request got neither answer nor refusal, a fault was not told, or the server was not well in time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from echolm.serving import ServeOptions, preflight, running_server
from echolm.serving.serve import model_repositories
from echolm.settings import load_settings
from echolm_lab.experiments.faults import Fault, Trial, run


def line(fault: Fault) -> str:
    """One line of the table."""
    times = (fault.told_s, fault.healed_s, fault.slowest_s)
    seconds = "".join(f"{'never' if value is None else f'{value:.2f}':>9}" for value in times)
    outcomes = "  ".join(f"{name} {number}" for name, number in sorted(fault.outcomes.items()))
    return f"{fault.process:16} {fault.action:8}{seconds}   {outcomes}"


def passed(trial: Trial) -> bool:
    """Whether nothing was lost, left open or hidden."""
    return trial.lost_ratings == 0 and all(
        fault.told_s is not None and fault.healed_s is not None and not fault.outcomes.get("late")
        for fault in trial.faults
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--faults", type=int, default=200, help="how many, one after the other")
    parser.add_argument("--clients", type=int, default=4, help="that ask one after the other")
    parser.add_argument("--seed", type=int, default=1, help="of the draw of processes")
    parser.add_argument("--within", type=float, default=30.0, help="seconds to be well again")
    options = parser.parse_args()
    serve = ServeOptions(http_port=0, grpc_port=0, metrics_port=0, gateway_port=0)
    models = preflight.models_in(model_repositories(serve))
    head = "".join(f"{name:>9}" for name in ("told s", "healed s", "slowest s"))
    with tempfile.TemporaryDirectory() as work:
        settings = load_settings().model_copy(update={"data_dir": Path(work) / "data"})
        with running_server(settings, serve) as endpoints:
            print(f"{'process':16} {'':8}{head}   requests")
            trial = run(
                endpoints,
                models,
                options.faults,
                options.clients,
                options.seed,
                options.within,
                lambda fault: print(line(fault), flush=True),
            )
    healed = [fault.healed_s for fault in trial.faults if fault.healed_s is not None]
    print(
        f"{len(trial.faults)} faults, well again after {statistics.median(healed or [0.0]):.1f} s "
        f"(median) and {max(healed, default=0.0):.1f} s (longest); {trial.lost_ratings} of "
        f"{trial.ratings} acknowledged ratings lost"
    )
    print(json.dumps(asdict(trial)))
    return 0 if passed(trial) else 1


if __name__ == "__main__":
    sys.exit(main())
