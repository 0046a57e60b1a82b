"""How a frozen encoder is found, built and given its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from ..catalogue.encoders import KNOWN_ENCODERS
from ..errors import ResourceError, SettingsError, one_line
from ..runtime.machine import explain_memory_errors, is_memory_error
from .building import REFUSALS, Blueprint, encoder_of, settle
from .coverage import patch_step
from .encoder import Encoder, FeaturesError
from .joint import JointEncoder
from .names import check_architecture
from .sight import nearest_whole, require_sight

__all__ = ["join_encoders", "load_encoder", "load_joint", "resolve_device"]


def join_encoders(
    members: Mapping[str | Encoder, float], name: str = "joint", device: torch.device | str = "auto"
) -> JointEncoder:
    """Several encoders as one, for a synthetic set that is optimised for all of them.

    Args:
        members: encoder, or the name that ``load_encoder`` knows one by, -> its weight in the loss.
        name: what to call it; folders are named so.
        device: where to put those that are loaded.

    Raises:
        SettingsError: fewer than two members, two of one name, one that is joint, a weight that is not above 0.
        ArtifactError: see ``load_encoder``.
    """
    loaded: dict[str, Encoder] = {}
    weights: dict[str, float] = {}
    for given, weight in members.items():
        encoder = load_encoder(given, device=device) if isinstance(given, str) else given
        if encoder.name in loaded:
            raise SettingsError(f"two members of {name!r} are called {encoder.name!r}: load one by another name")
        loaded[encoder.name], weights[encoder.name] = encoder, weight
    return JointEncoder(name, loaded, weights)


def load_joint(
    name: str,
    members: Mapping[str, Mapping[str, Any]],
    *,
    device: torch.device | str = "auto",
    untrained: int | None = None,
    arguments: dict[str, Any] | None = None,
) -> JointEncoder:
    """What ``load_encoder`` makes of ``members``: name -> ``weight`` and the arguments that it is loaded with."""
    common: dict[str, Any] = {"device": "cpu", "untrained": untrained, "arguments": arguments}
    weights = {member: float(own["weight"]) for member, own in members.items()}
    loaded = {
        member: load_encoder(member, **{key: value for key, value in own.items() if key != "weight"}, **common)
        for member, own in members.items()
    }
    chosen = device if isinstance(device, torch.device) else resolve_device(device)
    return JointEncoder(name, loaded, weights).to(chosen)


def resolve_device(device: str = "auto") -> torch.device:
    """``"auto"`` takes CUDA where there is one, else the CPU. Raises ``ResourceError`` for a device that is absent."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ResourceError(f"runtime.device is {device}, but torch sees {torch.cuda.device_count()} CUDA devices")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("runtime.device is mps, but torch has no Metal device here: use cpu or auto")
    return chosen


def load_encoder(
    name: str,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    image_size: int | None = None,
    device: torch.device | str = "auto",
    untrained: int | None = None,
    arguments: dict[str, Any] | None = None,
    features: str = "default",
    normalisation: str = "own",
    crop_pct: float | None = None,
    interpolation: str | None = None,
    members: Mapping[str, Mapping[str, Any]] | None = None,
) -> Encoder:
    """Build a frozen encoder.

    Args:
        name: what to call it; also a short name (``clpdd.catalogue.encoders.KNOWN_ENCODERS``) or the timm model name
            (``"vit_base_patch14_dinov2.lvd142m"``, or ``"hf-hub:..."``) unless ``model`` says otherwise.
        weights: a local ``.safetensors`` file instead of timm's pre-trained weights. Nothing that unpickles is read.
        image_size: input side in pixels; ``None`` takes the model's own. ViTs resize their position embeddings.
        device: where to put it.
        untrained: seed of random weights in place of any others, also of ``weights``; ``None`` loads weights.
        arguments: further ones for the model's constructor.
        features: ``default``, ``class_token``, ``mean_patch``, ``both``, or ``projected`` of a CLIP model.
        normalisation: ``own``, or ``imagenet`` for ImageNet's mean and standard deviation whatever the model's are.
        crop_pct: share in (0, 1] of the resized shorter side that a centred crop keeps of real images, 0.875 for 224 of
            256; ``None`` takes the model's own, and its own way to crop.
        interpolation: ``bilinear`` or ``bicubic``, how they are resized; ``None`` takes the model's own.
        members: of a joint encoder, name -> ``weight`` and arguments of this function that the member is loaded with;
            ``model``, ``weights``, ``image_size``, ``features``, ``normalisation``, ``crop_pct`` and ``interpolation``
            are then not looked at.

    Raises:
        SettingsError: unknown model name (near names are listed), an image size that the model refuses,
            features it has not, or a short name whose weights must be brought and are not.
        ArtifactError: weights that cannot be had, are not safetensors, or do not fit the model.
    """
    if members is not None:
        return load_joint(name, members, device=device, untrained=untrained, arguments=arguments)
    if model is None and name in KNOWN_ENCODERS:
        known = KNOWN_ENCODERS[name]
        if weights is None and untrained is None:
            known.refuse_missing_weights(name)
        model, image_size = known.model, image_size or known.image_size
        features = known.features if features == "default" else features
    architecture = model or name
    check_architecture(architecture)
    arguments = arguments or {}
    if features == "projected":
        arguments = {"num_classes": _projection(name, architecture), **arguments}
    if image_size is not None and image_size < 8:
        raise SettingsError(f"encoder_options.{name}.image_size is {image_size}; it must be at least 8 pixels")
    chosen = device if isinstance(device, torch.device) else resolve_device(device)
    file = None if weights is None else Path(weights).expanduser()
    blueprint = Blueprint(name, architecture, file, image_size, untrained, arguments)
    with explain_memory_errors(f"choose a smaller encoder than {name}, or a lower image_size"):
        encoder = _first_that_runs(blueprint, features, normalisation)
    encoder.prepare(crop_pct, interpolation)
    with explain_memory_errors(f"choose a smaller encoder than {name}, or another device than {chosen}"):
        return encoder.to(chosen)


def _projection(name: str, architecture: str) -> int:
    """Features after a CLIP model's projection, which timm keeps as its last layer; any other's gives classes.

    Raises ``SettingsError`` for a model that is none of CLIP's by a name of timm's, or was tuned to classes.
    """
    model, _, tag = architecture.partition(".")
    if ":" in architecture or "_clip_" not in f"{model}_" or "_ft_" in tag:
        raise SettingsError(
            f"encoder {name!r}: {architecture} has no projection into a space of texts, which features: projected asks "
            f"for; take a CLIP model, e.g. vit_base_patch32_clip_224.openai, or another kind of features"
        )
    known = timm.models.get_pretrained_cfg(architecture)
    assert known is not None  # the name was checked
    return int(known.num_classes)


def _first_that_runs(blueprint: Blueprint, features: str, normalisation: str) -> Encoder:
    """The first of a blueprint's candidates that encodes an image. Raises ``SettingsError`` where none does."""
    refused: Exception | None = None
    for built, shape in blueprint.candidates():
        try:
            if blueprint.untrained is not None:
                settle(built, shape)
            encoder = encoder_of(blueprint, built, shape, features, normalisation)
            require_sight(encoder, blueprint)
            return encoder.freeze()
        except REFUSALS as error:
            if is_memory_error(error):
                raise
            refused = refused or error
    assert refused is not None
    raise _unusable(blueprint, shape, patch_step(built), refused) from refused


def _unusable(blueprint: Blueprint, shape: tuple[int, int], step: int, error: Exception) -> SettingsError:
    who = f"encoder {blueprint.name!r} ({blueprint.architecture})"
    if isinstance(error, FeaturesError):
        return SettingsError(f"{who} cannot be used: {error}")
    if blueprint.image_size is None:
        return SettingsError(f"{who} cannot be used at its own image size, {shape[0]} x {shape[1]}: {one_line(error)}")
    key = f"encoder_options.{blueprint.name}.image_size"
    nearest = nearest_whole(blueprint, step, 2)
    remedy = f"Set {key} to {' or '.join(nearest)}, or leave it out" if nearest else f"Leave {key} out"
    return SettingsError(
        f"{who} cannot be used at image size {blueprint.image_size} with its weights: {one_line(error)}. {remedy} to "
        f"take the model's own"
    )
