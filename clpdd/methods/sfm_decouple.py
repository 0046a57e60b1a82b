"""SFM with both ends of the flow matched apart: own centres, and the means of the others (arXiv 2602.05391).

``distill.own_share`` weighs the two. At 1, the default of the published code, it matches class means and nothing else:
the control that says how much of a set's worth lies in its first moments. See ``clpdd.methods.sfm`` for what differs
from that code.
"""

from __future__ import annotations

from contextlib import closing

from torch import Tensor

from ..distilled.dataset import DistilledSet
from ..functional.flow import decoupled_loss
from ..optimise.context import Context
from ..optimise.loop import optimise
from .sfm import FlowMatch

__all__ = ["CentreMatch", "SfmDecouple"]


class CentreMatch(FlowMatch):
    """The loss of one step of ``sfm-decouple``."""

    def match(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """Loss of synthetic centres ``(C, d)`` beside the real ones."""
        return decoupled_loss(real, synthetic, self.settings.own_share)


class SfmDecouple:
    """SFM by squared error of own centres and of the others' means."""

    name = "sfm-decouple"

    def __call__(self, context: Context) -> DistilledSet:
        with closing(CentreMatch(context)) as problem:
            return optimise(context, problem)
