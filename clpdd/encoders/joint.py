"""Several encoders as one: their features side by side, their losses averaged by weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SettingsError
from ..functional.parts import Part, parts_of
from ..storage.files import canonical_json, sha256_bytes
from .encoder import Encoder

__all__ = ["JointEncoder"]


class JointEncoder(Encoder):
    """Frozen encoders, the members, that see the same pixels.

    The input has the size of the largest member, whose crop and interpolation real images are prepared with (the first
    of equals); each member resizes it to its own size and normalises it itself. Losses are averaged over ``parts``.
    Members are moved to the device of the first.

    Args:
        name: what to call it.
        members: the encoders by name, two or more, none of them joint.
        weights: of each member in the loss, > 0; only their ratios count.

    Raises ``SettingsError`` when these cannot be joined.
    """

    def __init__(self, name: str, members: Mapping[str, Encoder], weights: Mapping[str, float]) -> None:
        _check(name, members, weights)
        super().__init__(name, _SideBySide(members, weights), max(member.size for member in members.values()))
        self.border = _largest(members).border  # timm takes the colour from the mean, which is the members' own here
        self.to(next(iter(members.values())).device)

    model: _SideBySide

    @property
    def parts(self) -> Sequence[Part]:
        """The columns and the share of every member."""
        named = self.model.named
        return parts_of((member.dim, self.model.weights[name]) for name, member in named.items())

    @property
    def code(self) -> tuple[str, ...]:
        """Its own module and those of the members."""
        found = (*super().code, *(name for member in self.model.named.values() for name in member.code))
        return tuple(dict.fromkeys(found))

    def describe(self) -> dict[str, Any]:
        """As of any encoder, and ``members``: what describes each of them, its weight, its ``columns``."""
        return super().describe() | {"members": self._members()}

    def _members(self) -> list[dict[str, Any]]:
        found = []
        for (name, member), part in zip(self.model.named.items(), self.parts, strict=True):
            own = {"name": name, "weight": self.model.weights[name], "columns": [part.columns.start, part.columns.stop]}
            found.append(member.describe() | own)
        return found

    def _digest(self) -> str:
        described = [{k: v for k, v in member.items() if k not in ("name", "weight")} for member in self._members()]
        return sha256_bytes(canonical_json([described, [part.share for part in self.parts]]).encode())

    def _probe_dim(self) -> int:
        return sum(member.dim for member in self.model.named.values())


class _SideBySide(nn.Module):
    """Images ``(b, 3, h, w)`` in [0, 1] to the members' features ``(b, d)``, side by side in order."""

    def __init__(self, members: Mapping[str, Encoder], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.names = list(members)
        self.members = nn.ModuleList(members.values())
        self.weights = {name: float(weights[name]) for name in members}
        largest = _largest(members)
        # the form in which timm's models say it; mean and deviation leave the pixels to the members
        self.pretrained_cfg = {
            "input_size": (3, largest.size, largest.size),
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "crop_pct": largest.crop_fraction,
            "interpolation": largest.interpolation,
            "crop_mode": "squash" if largest.squash else "border" if largest.border else "center",
        }

    @property
    def named(self) -> dict[str, Encoder]:
        """The members by name."""
        found = {}
        for name, member in zip(self.names, self.members, strict=True):
            assert isinstance(member, Encoder)
            found[name] = member
        return found

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([member(images) for member in self.members], 1)


def _largest(members: Mapping[str, Encoder]) -> Encoder:
    return max(members.values(), key=lambda member: member.size)


def _check(name: str, members: Mapping[str, Encoder], weights: Mapping[str, float]) -> None:
    if len(members) < 2:
        raise SettingsError(f"the joint encoder {name!r} needs two members or more, it has {len(members)}")
    for member, encoder in members.items():
        if isinstance(encoder, JointEncoder):
            raise SettingsError(f"member {member!r} of {name!r} is a joint encoder itself: name its members instead")
        encoder.require_square(f"joining it with others in {name!r}")
        weight = weights[member]
        if not (weight > 0 and math.isfinite(weight)):
            raise SettingsError(f"the weight of {member!r} in {name!r} is {weight}; it must be above 0 and finite")
