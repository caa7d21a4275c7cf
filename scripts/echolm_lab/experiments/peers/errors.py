"""Why a peer is missing."""

from __future__ import annotations


class PeerUnavailableError(Exception):
    """A peer cannot be installed or started here, or does not answer; the message says why."""
