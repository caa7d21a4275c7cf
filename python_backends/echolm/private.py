"""Files that nobody but their owner may read, whatever the umask of whoever started us."""

from __future__ import annotations

import os

UMASK = 0o077
"""Of all of EchoLM's processes that hold data: directories become 0700 and files 0600."""


def opener(path: str, flags: int) -> int:
    """For ``open``, which then makes files with the mode 0600."""
    return os.open(path, flags, 0o600)
