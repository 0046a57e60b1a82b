"""The command line as ``python -m clpdd``, where the script ``clpdd`` is not on the path."""

from __future__ import annotations

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
