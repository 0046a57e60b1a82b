"""The process of one distillation (``clpdd.benchmark.child``): started by the runner, not by people."""

from __future__ import annotations

from .child import main

if __name__ == "__main__":
    main()
