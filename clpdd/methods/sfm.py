r"""SFM, statistical flow matching (arXiv 2602.05391): class centres that lie to each other as the real ones do.

The flow of a class points from its own centre to the mean of the others'. Real centres come from the kernel stage, so
no real image is loaded, augmented or encoded again; the loss is one minus the cosine between all real flows and all
synthetic ones.

Differences from the published code (einsteinxia/SFM): with several images per class it divides the sum of the other
centres by the number of images less one, where the paper's equation has the number of classes less one; the equation is
followed here, and with one image per class both are the same. Real centres are those of the cached features (centre
crops, as published). Float32 or bfloat16 in place of float16 autocast, hence no loss scaling; crops are taken from
images of the encoder's input size instead of 256 pixels.
"""

from __future__ import annotations

from contextlib import closing

from torch import Tensor

from ..distilled.dataset import DistilledSet
from ..functional.flow import class_centres, flow_loss
from ..functional.parts import weighted
from ..optimise.context import Context
from ..optimise.loop import optimise
from .problem import FeatureProblem

__all__ = ["FlowMatch", "Sfm"]


class FlowMatch(FeatureProblem):
    """The loss of one SFM step."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.centres = context.kernels.class_means.to(self.device)  # (C, d)

    def loss(self, Z: Tensor, step: int) -> Tensor:
        """``1 - cosine`` between real flows and those of features ``Z (views * n, d)``, member by member."""
        synthetic = class_centres(Z, self.targets.probabilities)
        return weighted(self.parts, lambda own: self.match(self.centres[:, own], synthetic[:, own]))

    def match(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """Loss of synthetic centres ``(C, d)`` beside the real ones."""
        return flow_loss(real, synthetic)


class Sfm:
    """Statistical flow matching."""

    name = "sfm"

    def __call__(self, context: Context) -> DistilledSet:
        with closing(FlowMatch(context)) as problem:
            return optimise(context, problem)
