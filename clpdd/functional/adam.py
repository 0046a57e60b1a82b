"""Adam's update, in place."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim.adam import adam

__all__ = ["adam_update"]


def adam_update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    counts: Sequence[Tensor],
    learning_rate: float,
    *,
    fused: bool,
) -> None:
    """Update ``parameters`` as ``torch.optim.Adam`` with its default betas and epsilon does, and no weight decay.

    The optimiser's own function: around it ``torch.optim.Adam`` costs more than a small probe's whole step.

    Args:
        means, squares: the moments, changed in place; each of the shape of its parameter.
        counts: scalars, the number of updates made so far, changed in place.
        fused: by one kernel, which rounds otherwise than the loop does; ``counts`` then lie on the parameters' device.

    Raises ``ValueError`` where a gradient or moment has not its parameter's shape, strides, dtype and device: a fused
    kernel walks through the memory of all of them alike.
    """
    for group in (gradients, means, squares):
        for parameter, other in zip(parameters, group, strict=True):
            _same_layout(parameter, other)
    adam(
        list(parameters),
        list(gradients),
        list(means),
        list(squares),
        [],
        list(counts),
        foreach=False,
        fused=fused,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=learning_rate,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
    )


def _same_layout(parameter: Tensor, other: Tensor) -> None:
    one, two = ((t.shape, t.stride(), t.dtype, t.device) for t in (parameter, other))
    if one != two:
        raise ValueError(f"a parameter has shape, strides, dtype and device {one}, what updates it {two}")
