"""``python -m echolm`` is the command ``echolm``."""

from __future__ import annotations

import sys

from echolm.cli.main import main

sys.exit(main())
