"""Linear probes: trained on a few images, or on all real features, and scored on test features.

Every function works on a batch of ``P`` probes at once (one for each seed and draw), stored as one ``(P, d, C)``
tensor: a probe is small, and on any device one batched product is far quicker than ``P`` loops. Probes never mix:
each one has its own stream of random numbers and comes out as if it had been trained alone.
"""

from __future__ import annotations

from .calibration import fit_temperature
from .closed_form import fit_ridge
from .linear import Probes
from .logistic import LOGISTIC_GRID, fit_logistic
from .scoring import Score, score
from .sgd import BATCH, fit_sgd

__all__ = [
    "BATCH",
    "LOGISTIC_GRID",
    "Probes",
    "Score",
    "fit_logistic",
    "fit_ridge",
    "fit_sgd",
    "fit_temperature",
    "score",
]
