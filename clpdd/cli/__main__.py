"""``python -m clpdd.cli``: the ``clpdd`` command."""

from __future__ import annotations

import sys

from .main import main

sys.exit(main())
