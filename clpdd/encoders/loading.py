"""How a frozen encoder is found, built and given its weights."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ..catalogue.encoders import ARCHITECTURES, KNOWN_ENCODERS
from ..errors import ArtifactError, ResourceError, SettingsError
from ..runtime.machine import explain_memory_errors
from .encoder import Encoder
from .joint import JointEncoder
from .shapes import input_shape
from .weights import load_weights

__all__ = ["join_encoders", "load_joint"]


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
        features: ``default``, ``class_token``, ``mean_patch`` or ``both``.
        members: of a joint encoder, name -> ``weight`` and arguments of this function that the member is loaded with;
            ``model``, ``weights``, ``image_size`` and ``features`` are then not looked at.

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
    architecture, own = architecture_of(model or name, image_size)
    size = _input_size(architecture, image_size)
    pretrained = weights is None and untrained is None
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(untrained or 0)
            built = timm.create_model(architecture, num_classes=0, pretrained=pretrained, **own, **(arguments or {}))
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise _explain_build(architecture, image_size, error) from error
    if weights is not None and untrained is None:
        load_weights(built, Path(weights).expanduser())
    built = built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    chosen = device if isinstance(device, torch.device) else resolve_device(device)
    shape = input_shape(built) if size is None else (size, size)
    try:
        with explain_memory_errors(f"choose a smaller encoder than {name}, or a lower image_size"):
            own_code = ARCHITECTURES.get(_registered_name(architecture, built), "")
            return Encoder(name, built, shape, features, own_code).to(chosen)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            f"encoder {name!r} ({architecture}) cannot be used at image size {shape[0]} x {shape[1]}: {said}"
        ) from error


def architecture_of(
    name: str, image_size: int | None, where: str = "encoders", others: Sequence[str] = ()
) -> tuple[str, dict[str, Any]]:
    """A timm model's name and what its constructor needs for an image size.

    Raises ``SettingsError`` for an unknown one, saying ``where`` it stands and listing near names, also of ``others``.
    """
    known = name.split(".")[0]
    _register(known)
    if ":" not in name and not timm.is_model(known):
        names = [*others, *ARCHITECTURES, *timm.list_models(), *timm.list_pretrained()]
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
        hint = f"near names: {', '.join(near)}" if near else "timm.list_models() lists them all"
        raise SettingsError(f"{where}: timm has no model named {name!r}; {hint}")
    sized = image_size is not None and known.startswith(("vit", "eva", "deit", "beit", "swin"))
    return name, {"img_size": image_size} if sized else {}


def _register(name: str) -> None:
    """Make timm know an architecture of ours; of a repository, whose files alone say which it is, all of them."""
    for architecture, module in ARCHITECTURES.items():
        if name == architecture or ":" in name:
            importlib.import_module(module)


def _registered_name(architecture: str, built: nn.Module) -> str:
    """The name that an architecture is registered by with timm."""
    if ":" in architecture:
        return str((getattr(built, "pretrained_cfg", None) or {}).get("architecture", ""))
    return architecture.split(".")[0]


def _input_size(architecture: str, image_size: int | None) -> int | None:
    if image_size is not None and image_size < 8:
        raise SettingsError(f"encoder_options.{architecture}.image_size is {image_size}; it must be at least 8 pixels")
    return image_size


def _explain_build(architecture: str, image_size: int | None, error: Exception) -> SettingsError | ArtifactError:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, (TypeError, AssertionError)) or "img_size" in said:
        return SettingsError(f"encoder {architecture!r} refuses the image size {image_size}: {said}")
    remedy = f"encoder_options: {{{architecture}: {{weights: path/to/file.safetensors}}}}"
    return ArtifactError(
        f"the pre-trained weights of {architecture!r} cannot be had ({said}). Without a connection, download the "
        f"model's .safetensors file elsewhere and set {remedy}"
    )
