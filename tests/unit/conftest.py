"""Unit tests have no deadline per hypothesis example: machines that run them are often busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("echolm", deadline=None)
settings.load_profile("echolm")
