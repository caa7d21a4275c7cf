"""``echolm serve``: a server in the foreground, until a signal ends it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

from echolm.errors import UnavailableError
from echolm.serving.serve import Endpoints, LocalServer, ServeOptions, StartInterruptedError
from echolm.settings import Settings


def serve_forever(settings: Settings, options: ServeOptions) -> int:
    """Serve until SIGINT, SIGTERM or SIGHUP; a second signal ends everything at once.

    Returns the exit status: 0 after a clean stop, 1 when Triton ended again and again.
    """
    stop = threading.Event()
    server = LocalServer(settings, options, progress=_print_progress)

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            server.kill()
            os._exit(128 + signum)
        stop.set()
        _print_progress("stopping (again: at once)")

    before = {
        number: signal.signal(number, on_signal)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup: stays ignored
    }
    started = time.monotonic()
    try:
        endpoints = server.start(stop)
        server.supervise()
        print(_greeting(endpoints, options, time.monotonic() - started), flush=True)
        while not stop.wait(0.5):
            server.check()
        return 0
    except StartInterruptedError:
        return 0
    except UnavailableError as error:
        _print_progress(str(error))
        return 1
    finally:
        server.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_progress(message: str) -> None:
    print(f"echolm serve: {message}", file=sys.stderr, flush=True)


def _greeting(endpoints: Endpoints, options: ServeOptions, seconds: float) -> str:
    lines = [f"EchoLM is ready after {seconds:.1f} s (profile {options.profile})"]
    if endpoints.gateway_url:
        lines.append(f"  OpenAI   {endpoints.gateway_url}")
    lines += [
        f"  gRPC     {endpoints.grpc_url}",
        f"  HTTP     {endpoints.http_url}",
        f"  metrics  {endpoints.metrics_url}",
        f"  data     {endpoints.data_dir}",
        "Try it:",
        f"  curl -s {endpoints.http_url}/v2/models/echolm/generate "
        """-d '{"text_input": "How do I find large files?"}'""",
        "Stop it with Ctrl-C.",
    ]
    return "\n".join(lines)
