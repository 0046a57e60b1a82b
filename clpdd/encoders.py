"""Any timm model as a frozen encoder: pixels in [0, 1] in, features out, gradients to the pixels alone."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision import transforms as tv

from . import models  # noqa: F401  (registers our architectures with timm)
from .errors import ArtifactError, ResourceError, SettingsError
from .files import explain_memory_errors, sha256_bytes
from .localweights import load_weights
from .parts import WHOLE, Part
from .resample import resize

__all__ = ["Encoder", "architecture_of", "load_encoder", "resolve_device"]


FEATURES = ("default", "class_token", "mean_patch", "both")


class Encoder(nn.Module):
    """A frozen timm model.

    ``forward`` takes images ``(b, 3, h, w)`` in [0, 1] of any size, resizes them bilinearly to ``size`` where they
    differ, normalises them by the model's own mean and standard deviation and returns features ``(b, dim)`` float32.
    No parameter ever requires a gradient; the pixels may.

    Attributes:
        name: the name it was asked for by.
        dim: number of features ``d``.
        size: side of the input in pixels.
        digest: SHA-256 over the architecture, the weights' names, shapes and bytes, and the kind of features.
        features: ``default`` (what the model itself gives), ``class_token``, ``mean_patch`` or ``both``
            (in that order).

    Raises ``ValueError`` where the model has not the tokens that ``features`` asks for.
    """

    def __init__(self, name: str, model: nn.Module, size: int, features: str = "default") -> None:
        super().__init__()
        config = timm.data.resolve_data_config({}, model=model)
        self.name = name
        self.features = features
        _require_tokens(model, features)
        self.model = model.eval().requires_grad_(False)
        self.size = size
        self.dim = 0
        self.crop_fraction = float(config["crop_pct"])
        self.interpolation = str(config["interpolation"])
        self.squash = config["crop_mode"] == "squash"
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, -1, 1, 1), persistent=False)
        self.input_dtype: torch.dtype | None = None  # what the model's first layer takes, where it is not float32
        self.digest = self._digest()
        self.dim = self._probe_dim()

    mean: Tensor
    std: Tensor

    def _digest(self) -> str:
        return _weights_digest(self.model, self.features)

    @torch.no_grad()
    def _probe_dim(self) -> int:
        """One forward of a grey image: what a model's own ``num_features`` says is not always what comes out."""
        found = self.forward(torch.full((1, 3, self.size, self.size), 0.5))
        if found.ndim != 2:
            raise ValueError(f"it gives {tuple(found.shape)} instead of one vector per image")
        return int(found.shape[1])

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, dim)`` of images ``(b, 3, h, w)`` in [0, 1]."""
        normalised = (resize(images, self.size) - self.mean) / self.std
        if normalised.device.type == "cpu":
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        if self.input_dtype is not None:
            normalised = normalised.to(self.input_dtype)
        features: Tensor = self.model(normalised) if self.features == "default" else self._pooled(normalised)
        return features.float()

    def _pooled(self, normalised: Tensor) -> Tensor:
        """Class token and mean patch token, after the model's final norm wherever it lies."""
        model: Any = self.model
        tokens: Tensor = model.forward_features(normalised)
        if tokens.ndim != 3:
            raise ValueError(f"it gives {tuple(tokens.shape)} instead of tokens: set features to default")
        kinds = {"class_token": tokens[:, 0], "mean_patch": tokens[:, model.num_prefix_tokens :].mean(1)}
        chosen = list(kinds.values()) if self.features == "both" else [kinds[self.features]]
        norm = getattr(model, "fc_norm", None)  # models that average by default normalise after pooling
        return torch.cat([part if norm is None else norm(part) for part in chosen], 1)

    @property
    def parts(self) -> Sequence[Part]:
        """The columns that are judged apart: all of them together, unless several encoders are joined."""
        return WHOLE

    @property
    def resized(self) -> int:
        """Shorter side in pixels before the crop (of models that squash, both sides)."""
        return math.floor(self.size / self.crop_fraction)

    @property
    def transform(self) -> tv.Compose:
        """PIL image -> ``(3, size, size)`` uint8: resize and centre crop as timm does by the model's configuration.

        It holds no reference to the model, so that decoding processes can receive it cheaply.
        """
        mode = tv.InterpolationMode(self.interpolation if self.interpolation != "random" else "bicubic")
        steps = [
            tv.Resize((self.resized, self.resized) if self.squash else self.resized, interpolation=mode),
            tv.CenterCrop(self.size),
            tv.PILToTensor(),
        ]
        return tv.Compose(steps)

    def describe(self) -> dict[str, Any]:
        """What decides the features, as JSON values: goes into every artifact made with this encoder."""
        return {
            "name": self.name,
            "digest": self.digest,
            "dim": self.dim,
            "size": self.size,
            "crop_fraction": self.crop_fraction,
            "squash": self.squash,
            "interpolation": self.interpolation,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }


def _require_tokens(model: nn.Module, features: str) -> None:
    if features not in FEATURES:
        raise ValueError(f"features is {features!r}; it must be one of {', '.join(FEATURES)}")
    if features != "default" and not hasattr(model, "num_prefix_tokens"):
        raise ValueError("it has no tokens: set features to default")
    if features in ("class_token", "both") and getattr(model, "cls_token", None) is None:
        raise ValueError("it has no class token: set features to default or mean_patch")


def _weights_digest(model: nn.Module, features: str) -> str:
    # The printed model tells apart architectures that share their weights' names and shapes.
    parts = [repr(model).encode()]
    for key, value in sorted(model.state_dict().items()):
        raw = value.detach().cpu().contiguous()
        parts.append(
            f"{key}{tuple(raw.shape)}{raw.dtype}".encode() + raw.reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    if features != "default":
        parts.append(f"features={features}".encode())
    return sha256_bytes(b"".join(parts))


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
        name: what to call it; also a short name (``clpdd.config.KNOWN_ENCODERS``) or the timm model name
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
    from .config import KNOWN_ENCODERS, EncoderOptions  # here: encoders must import where there is no pydantic

    if members is not None:
        from .joint import load_joint

        return load_joint(name, members, device=device, untrained=untrained, arguments=arguments)
    if model is None and name in KNOWN_ENCODERS:
        brought = str(weights) if weights is not None else None if untrained is None else "none: untrained"
        given = EncoderOptions(weights=brought, image_size=image_size).completed(name)
        model, image_size = given.model, given.image_size
        features = given.features if features == "default" else features
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
    try:
        with explain_memory_errors(f"choose a smaller encoder than {name}, or a lower image_size"):
            return Encoder(name, built, size or _native_size(built), features).to(chosen)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            f"encoder {name!r} ({architecture}) cannot be used at image size {size or _native_size(built)}: {said}"
        ) from error


def architecture_of(
    name: str, image_size: int | None, where: str = "encoders", others: Sequence[str] = ()
) -> tuple[str, dict[str, Any]]:
    """A timm model's name and what its constructor needs for an image size.

    Raises ``SettingsError`` for an unknown one, saying ``where`` it stands and listing near names, also of ``others``.
    """
    known = name.split(".")[0]
    if ":" not in name and not timm.is_model(known):
        near = difflib.get_close_matches(name, [*others, *timm.list_models(), *timm.list_pretrained()], n=5, cutoff=0.5)
        hint = f"near names: {', '.join(near)}" if near else "timm.list_models() lists them all"
        raise SettingsError(f"{where}: timm has no model named {name!r}; {hint}")
    sized = image_size is not None and known.startswith(("vit", "eva", "deit", "beit", "swin"))
    return name, {"img_size": image_size} if sized else {}


def _native_size(model: nn.Module) -> int:
    return int(timm.data.resolve_data_config({}, model=model)["input_size"][-1])


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
