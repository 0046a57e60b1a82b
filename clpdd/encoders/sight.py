"""Image sizes of which an encoder would not see all: refused or warned of, with the nearest that are seen whole."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from ..errors import SettingsError
from .building import REFUSALS, Blueprint, encoder_of, settle
from .coverage import Coverage, coverage, patch_step
from .encoder import Encoder

__all__ = ["nearest_whole", "require_sight", "sight"]

log = logging.getLogger(__name__)

_BLIND = 0.1  # share of an image that a convolutional network may cut off
_PATCH = 8  # pixels from patch to patch, from which on nothing may be cut off: so transformers begin, not ConvNeXt


@torch.no_grad()
def sight(encoder: Encoder) -> Coverage:
    """What of an encoder's input is seen at all: see ``coverage``."""
    return coverage(lambda images: encoder(images.to(encoder.device)).cpu(), encoder.shape)


def require_sight(encoder: Encoder, blueprint: Blueprint) -> None:
    """Refuse an image size of which a patch more or less cuts much off; warn of a little.

    Nothing is measured where the blueprint asks for no size: a model's own is what it was trained at.

    Raises ``SettingsError`` that names the nearest sizes that are seen whole.
    """
    if blueprint.image_size is None:
        return
    seen, step = sight(encoder), patch_step(encoder.model)
    if seen.whole:
        return
    last = max(seen.unseen)
    below = blueprint.image_size - last
    cut = (
        f"encoder {encoder.name!r} ({blueprint.architecture}) at image size {blueprint.image_size} does not see the "
        f"last {f'{last} pixels' if last > 1 else 'pixel'} of a side, {100 * seen.lost:.1f} % of every image, beyond "
        f"its last whole patch"
    )
    if seen.lost <= _BLIND and step < _PATCH and not hasattr(encoder.model, "cls_token"):
        log.warning("%s (whole patches of %d pixels: %d or %d)", cut, step, below, below + step)
        return
    nearest = nearest_whole(blueprint, step) or ["another"]
    raise SettingsError(f"{cut}. Set encoder_options.{encoder.name}.image_size to {' or '.join(nearest)}")


def nearest_whole(blueprint: Blueprint, step: int, tries: int = 4) -> list[str]:
    """The nearest sizes below and above that of the blueprint which the model takes and sees all of.

    They are tried, with random weights, among the next ``tries`` multiples of ``step``, from patch to patch,
    and those of 32.
    """
    assert blueprint.image_size is not None
    size, found = blueprint.image_size, []
    for sign in (-1, 1):
        grid = [(step, k) for k in range(tries + 1)] + [(32, k) for k in range(3)]
        sizes = {(size // each + sign * k) * each for each, k in grid}
        for near in sorted((s for s in sizes if s >= 8 and sign * s > sign * size), key=lambda s: abs(s - size)):
            if _whole(replace(blueprint, image_size=near, untrained=0)):
                found.append(str(near))
                break
    return found


def _whole(blueprint: Blueprint) -> bool:
    for built, shape in blueprint.candidates():
        try:
            settle(built, shape)
            return sight(encoder_of(blueprint, built, shape)).whole
        except REFUSALS:
            continue
    return False
