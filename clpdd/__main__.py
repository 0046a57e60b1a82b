"""The command line: the script ``clpdd``, and ``python -m clpdd`` where the script is not on the path."""

from __future__ import annotations

import sys

__all__ = ["run"]


def run() -> int:
    """Run one command. Returns its exit code, 130 after Ctrl-C at any time."""
    try:
        from .cli.main import main  # inside, so that Ctrl-C is answered while it is loaded, too
    except KeyboardInterrupt:
        print("clpdd: interrupted", file=sys.stderr)
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(run())
