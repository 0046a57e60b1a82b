"""Methods against each other: accuracy by the clock and by steps, memory and encoder passes, on one machine.

A job is one distillation: a method (or a variant of it), images per class and a seed. It runs in a process of its own,
keeps its images at points of a grid, and every point is judged by the evaluation's own protocols.
"""

from __future__ import annotations

from .ablations import plan_ablations
from .plan import Job, plan
from .run import compare

__all__ = ["Job", "compare", "plan", "plan_ablations"]
