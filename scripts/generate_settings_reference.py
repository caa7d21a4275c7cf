#!/usr/bin/env python3
"""Write python_backends/SETTINGS.md, the reference of all settings, from the schema."""

from __future__ import annotations

import argparse
from pathlib import Path

from echolm.settings.reference import settings_reference

FILE = Path(__file__).parents[1] / "python_backends" / "SETTINGS.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FILE, help="default: %(default)s")
    options = parser.parse_args()
    options.output.write_text(settings_reference(), encoding="utf-8")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
