"""What is tried with one model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clpdd.encoders.building import REFUSALS, Blueprint, channels_last, settle
from clpdd.encoders.calling import encode
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import load_encoder
from clpdd.encoders.shapes import input_shape
from clpdd.encoders.sight import sight
from clpdd.errors import ArtifactError, ClpddError, SettingsError

__all__ = ["Model", "Row", "try_model"]

_BARE = re.compile(r"(^|: )\w*(Error|Exception)?$")  # a refusal that says no more than the kind of an error


@dataclass
class Row:
    """What came of one model, in a word for each column of the table, and what is wrong about it."""

    module: str
    model: str
    size: str = ""
    own: str = ""
    other: str = ""
    odd: str = ""
    wrong: str = ""
    faults: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model and what to build it with, and larger ones of its module, the nearest first."""

    module: str
    name: str
    arguments: dict[str, Any]
    larger: tuple[str, ...]


def try_model(model: Model, folder: Path) -> Row:
    """All checks, each of which goes on where another failed."""
    row = Row(model.module, model.name)
    file = folder / "own.safetensors"
    published = _saved(model.name, model.arguments, file)
    shape = input_shape(published)
    row.size = " x ".join(map(str, dict.fromkeys(shape)))
    del published
    for column, check in (("own", _own), ("other", _other), ("odd", _odd), ("wrong", _wrong)):
        try:
            setattr(row, column, check(model, file, shape, row))
        except Exception as error:  # the point is to find those that should not be
            setattr(row, column, "failed")
            row.faults[f"traceback ({column})"] = f"{type(error).__name__}: {error}"
    return row


def _saved(name: str, arguments: dict[str, Any], file: Path) -> nn.Module:
    """A model as timm publishes it, with its classifier where it has one, saved."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    settle(model, input_shape(model))
    save_file({key: value.contiguous().clone() for key, value in model.state_dict().items()}, file)
    return model


def _load(model: Model, file: Path, size: int | None) -> Encoder:
    return load_encoder(model.name, weights=file, image_size=size, device="cpu", arguments=model.arguments)


def _theirs(model: Model, file: Path, shape: tuple[int, int], sized: bool) -> Callable[[Tensor], Tensor]:
    """timm's own loading of the file, which leaves the classifier out."""
    more = {"img_size": shape[0]} if sized else {}
    built = timm.create_model(
        model.name,
        pretrained=True,
        num_classes=0,
        pretrained_cfg_overlay={"file": str(file), "custom_load": False},
        **(model.arguments | more),
    )
    return Encoder(model.name, channels_last(built), shape)


def _images(shape: tuple[int, int]) -> Tensor:
    return torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(1))


def _same(ours: Encoder, theirs: Callable[[Tensor], Tensor]) -> bool:
    images = _images(ours.shape)
    with torch.no_grad():
        found, expected = encode(ours, images), theirs(images)
    return bool((found - expected).norm() <= 1e-4 * expected.norm().clamp_min(1e-6))


def _refusal(row: Row, column: str, error: ClpddError) -> str:
    if _BARE.search(str(error)):
        row.faults[f"unclear ({column})"] = str(error)
    return "refused"


def _own(model: Model, file: Path, shape: tuple[int, int], row: Row) -> str:
    try:
        ours = _load(model, file, None)
    except ClpddError as error:
        row.faults["own weights refused"] = str(error)
        return _refusal(row, "own", error)
    if not _same(ours, _theirs(model, file, shape, sized=False)):
        row.faults["features differ (own)"] = "from timm's with the same weights"
        return "differ"
    return "as timm's"


def _other(model: Model, file: Path, shape: tuple[int, int], row: Row) -> str:
    """At about half the size, or twice that of small models."""
    size = _other_size(model, shape)
    references = []
    for sized in (True, False):
        try:
            reference = _theirs(model, file, (size, size), sized)
            reference(_images((size, size)))
            references.append(reference)
        except REFUSALS:
            pass
    try:
        ours = _load(model, file, size)
    except ClpddError as error:
        if references and not isinstance(error, SettingsError):
            row.faults["own weights refused (other size)"] = str(error)
        return f"{size}: {_refusal(row, 'other', error)}" + ("" if not references else ", timm runs")
    if not any(_same(ours, reference) for reference in references):
        row.faults["features differ (other size)"] = "from timm's with the same weights"
        return f"{size}: differ"
    return f"{size}: as timm's"


def _other_size(model: Model, shape: tuple[int, int]) -> int:
    with torch.device("meta"):
        convolutions = [m for m in _meta(model).modules() if isinstance(m, nn.Conv2d)]
    step = 14 if convolutions and convolutions[0].stride[0] == 14 else 32
    target = min(shape) // 2 if min(shape) >= 128 else 2 * min(shape)
    return step * max(2, round(target / step))


def _named(name: str) -> nn.Module:
    return _meta(Model("", name, {}, ()))


def _structure(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that are the same at every image size and with whatever teacher."""
    state = model.state_dict()
    return {
        k: tuple(v.shape)
        for k, v in state.items()
        if not any(word in k for word in ("pos", "rel", "table", "bias", "dist"))
    }


def _meta(model: Model) -> nn.Module:
    try:
        with torch.device("meta"):
            return timm.create_model(model.name, num_classes=0, **model.arguments)
    except REFUSALS:
        return timm.create_model(model.name, num_classes=0, **model.arguments)


def _odd(model: Model, file: Path, shape: tuple[int, int], row: Row) -> str:
    """At a size that is no multiple of a patch: what is cut off must be what has no gradient."""
    size = _other_size(model, shape) + 5
    try:
        _load(model, file, size)
        outcome = "taken"
    except ClpddError as error:
        outcome = _refusal(row, "odd", error)
    for built, chosen in Blueprint(model.name, model.name, file, size, None, model.arguments).candidates():
        try:
            encoder = Encoder(model.name, channels_last(built), chosen)
        except REFUSALS:
            continue
        seen = sight(encoder)
        if _blind_by_gradient(encoder) != seen.unseen:
            row.faults["coverage differs"] = f"{seen.unseen} measured, {_blind_by_gradient(encoder)} without gradient"
        if not seen.whole:
            return f"{size}: {100 * seen.lost:.0f} % unseen, {'warned' if outcome == 'taken' else outcome}"
        return f"{size}: seen whole" if outcome == "taken" else f"{size}: {outcome}"
    return f"{size}: {outcome}"


def _blind_by_gradient(encoder: Encoder) -> tuple[int, int]:
    images = _images(encoder.shape)[:1].requires_grad_()
    weights = torch.rand(encoder.dim, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((encoder(images) * weights).sum(), images)
    reached = gradient.abs().sum((0, 1)) > 0
    return tuple(int(reached.any(axis).flip(0).to(torch.uint8).argmax()) for axis in (1, 0))  # type: ignore[return-value]


def _wrong(model: Model, file: Path, shape: tuple[int, int], row: Row) -> str:
    """Weights that lack one, have one too many, or are those of the next larger model of another structure."""
    state = load_file(file)
    own = set(_meta(model).state_dict())
    last = sorted(own & set(state))[-1]
    wrong = {
        "one missing": {key: value for key, value in state.items() if key != last},
        "one too many": state | {f"{last}2": state[last].clone()},
    }
    neighbour = next((name for name in model.larger if _structure(_meta(model)) != _structure(_named(name))), None)
    if neighbour is not None:
        _saved(neighbour, {}, file.with_name("other.safetensors"))
        wrong[neighbour] = load_file(file.with_name("other.safetensors"))
    taken = []
    for name, weights in wrong.items():
        changed = file.with_name("wrong.safetensors")
        save_file(weights, changed)
        try:
            _load(model, changed, None)
            taken.append(name)
        except ArtifactError as error:
            _refusal(row, "wrong", error)
    if taken:
        row.faults["wrong weights taken"] = ", ".join(taken)
    return f"taken: {', '.join(taken)}" if taken else f"{len(wrong)} refused"
