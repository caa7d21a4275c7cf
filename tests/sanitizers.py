"""A Triton whose front door was compiled with a sanitizer, and what the sanitizer says of it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from echolm.serving.triton_installation import TritonInstallation, find_triton

RUNTIME = {"address": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    "address": {
        # Triton's own libraries keep no frame pointers, so that stacks are found out slowly; and
        # at its exit, and in its threads' storage, the search for leaks hangs or crashes.
        "ASAN_OPTIONS": "fast_unwind_on_malloc=0:leak_check_at_exit=0",
        "LSAN_OPTIONS": "use_tls=0",
    },
    "thread": {"TSAN_OPTIONS": "die_after_fork=0:report_signal_unsafe=0:exitcode=0"},
}
# Loaded into tritonserver alone: its children must not have the sanitizer, under which they end at
# once. It looks for leaks as soon as there is a file `check-leaks`, which it then removes.
_HELPER = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int __lsan_do_recoverable_leak_check(void) __attribute__((weak));
static void* check(void* unused) {
  char path[4096];
  snprintf(path, sizeof path, "%s/check-leaks", getenv("FRONT_DOOR_TEST"));
  while (access(path, F_OK) != 0) usleep(20000);
  __lsan_do_recoverable_leak_check();
  unlink(path);
  return unused;
}
__attribute__((constructor)) static void start(void) {
  pthread_t thread;
  unsetenv("LD_PRELOAD");
  if (__lsan_do_recoverable_leak_check) pthread_create(&thread, 0, check, 0);
}
"""
_OURS = "libtriton_echolm.so"


def runtime(sanitizer: str) -> str:
    """Path of the sanitizer's library that belongs to the system's g++; empty if there is none."""
    ask = ["g++", f"-print-file-name={RUNTIME[sanitizer]}"]
    try:
        found = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return os.path.realpath(found) if os.path.isabs(found) else ""


class SanitizedTriton(TritonInstallation):
    """The installed Triton, started by a script that loads a sanitizer first."""

    script: Path

    @property
    def server(self) -> Path:
        return self.script


def sanitized_triton(folder: Path, sanitizer: str) -> SanitizedTriton:
    """It writes what it finds to ``report.*`` in the folder."""
    (folder / "helper.c").write_text(_HELPER)
    helper = folder / "helper.so"
    command = ["gcc", "-shared", "-fPIC", "-o", str(helper), str(folder / "helper.c")]
    subprocess.run(command, check=True)
    found = find_triton()
    triton = SanitizedTriton(found.root, found.libraries, found.libpython_dir)
    script = folder / "tritonserver"
    script.write_text(
        f'#!/bin/sh\nLD_PRELOAD={runtime(sanitizer)}:{helper} exec {found.server} "$@"\n'
    )
    script.chmod(0o755)
    object.__setattr__(triton, "script", script)
    return triton


def environment(folder: Path, sanitizer: str) -> dict[str, str]:
    """The sanitizer's options."""
    options = dict(OPTIONS[sanitizer])
    name = next(iter(options))
    return {**options, name: f"{options[name]}:log_path={folder / 'report'}"}


def _calls(block: str) -> list[list[str]]:
    """The stacks in a report, without the sanitizer's own frames."""
    stacks: list[list[str]] = [[]]
    for line in block.splitlines():
        if re.match(r"\s+#\d", line):
            if "libsanitizer" not in line:
                stacks[-1].append(line)
        elif stacks[-1]:
            stacks.append([])
    return [stack for stack in stacks if stack]


def findings(folder: Path) -> list[str]:
    """Reports on the front door.

    Triton is not compiled for the sanitizers, so they do not see how it passes a thing from one
    thread to another, and it has leaks and lock cycles of its own. A leak counts if the front door
    is anywhere in its stack, a race or a lock cycle if the front door itself makes both of the
    accesses, and anything else if it is in any of the stacks.
    """
    found = []
    for file in folder.glob("report.*"):
        text = file.read_text(errors="replace")
        for block in re.split(r"={18}|\n(?=(?:Ind|D)irect leak)", text):
            stacks = _calls(block)
            if "data race" in block or "lock-order-inversion" in block:
                ours = len(stacks) > 1 and all(_OURS in stack[0] for stack in stacks[:2])
            else:
                ours = any(_OURS in line for stack in stacks for line in stack)
            if ours:
                found.append(block)
    return found
