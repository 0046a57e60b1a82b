"""Any timm model as a frozen encoder: pixels in [0, 1] in, features out, gradients to the pixels alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ..errors import SettingsError
from ..functional.parts import WHOLE, Part
from ..functional.resample import resize
from .activations import spare_copies
from .convolutions import widen_depthwise
from .folding import fold_batch_norms
from .identity import model_digest
from .preprocessing import Preprocess

__all__ = ["Encoder", "FeaturesError", "require_square"]

FEATURES = ("default", "class_token", "mean_patch", "both", "projected")
NORMALISATIONS = ("own", "imagenet")


class FeaturesError(ValueError):
    """The model has not the features that were asked for."""


class Encoder(nn.Module):
    """A frozen timm model.

    ``forward`` takes images ``(b, 3, h, w)`` in [0, 1] of any size, resizes them bilinearly to ``shape`` where they
    differ, normalises them by the model's own mean and standard deviation, or by ImageNet's, and returns features
    ``(b, dim)`` float32.
    No parameter ever requires a gradient; the pixels may.

    Attributes:
        name: the name it was asked for by.
        dim: number of features ``d``.
        size: side of the input in pixels; of an input that is not square, the longer one.
        shape: height and width of the input in pixels.
        digest: SHA-256 over the layers, the weights' names, shapes and bytes (``identity``), the kind of features, and
            the normalisation where it is not the model's own: of the model as it was given, before ``freeze``.
        features: ``default`` (what the model itself gives), ``class_token``, ``mean_patch``, ``both`` (in that order)
            or ``projected`` (what a CLIP model with its projection gives).

    Args:
        size: side of the input in pixels, or its height and width.
        architecture: dotted name of this package's module that builds ``model``; empty: a library's.
        normalisation: ``own``, or ``imagenet``.

    Raises ``FeaturesError`` where the model has not the tokens that ``features`` asks for, or for an unknown
    ``normalisation``.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        size: int | tuple[int, int],
        features: str = "default",
        architecture: str = "",
        normalisation: str = "own",
    ) -> None:
        super().__init__()
        config = timm.data.resolve_data_config({}, model=model)
        self.name = name
        self.features = features
        self.architecture = architecture
        if normalisation not in NORMALISATIONS:
            raise FeaturesError(f"normalisation is {normalisation!r}; it must be one of {', '.join(NORMALISATIONS)}")
        self.normalisation = normalisation
        _require_tokens(model, features)
        self.model = model.eval().requires_grad_(False)
        self.shape = size if isinstance(size, tuple) else (size, size)
        self.size = max(self.shape)
        self.dim = 0
        self.crop_fraction = float(config["crop_pct"])
        self.interpolation = str(config["interpolation"])
        self.squash = config["crop_mode"] == "squash"
        self.border: tuple[int, int, int] | None = None
        if config["crop_mode"] == "border":
            red, green, blue = (round(255 * value) for value in config["mean"])
            self.border = red, green, blue
        own = config["mean"], config["std"]
        mean, std = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if normalisation == "imagenet" else own
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.input_dtype: torch.dtype | None = None  # what the model's first layer takes, where it is not float32
        self.digest = self._digest()
        self.dim = self._probe_dim()

    mean: Tensor
    std: Tensor

    @property
    def code(self) -> tuple[str, ...]:
        """Dotted names of the modules that compute the features: where ``code_digest`` starts for them."""
        own = type(self).__module__
        called = own if own.startswith("clpdd.") else "clpdd.encoders.encoder"
        return (called, self.architecture) if self.architecture else (called,)

    def _digest(self) -> str:
        told = {"features": (self.features, "default"), "normalisation": (self.normalisation, "own")}
        return model_digest(self.model, *(f"{name}={own}" for name, (own, usual) in told.items() if own != usual))

    @torch.no_grad()
    def _probe_dim(self) -> int:
        """One forward of a grey image: what a model's own ``num_features`` says is not always what comes out."""
        found = self.forward(torch.full((1, 3, *self.shape), 0.5))
        if found.ndim != 2:
            raise ValueError(f"it gives {tuple(found.shape)} instead of one vector per image")
        return int(found.shape[1])

    def prepare(self, crop_pct: float | None = None, interpolation: str | None = None) -> None:
        """Prepare real images otherwise than the model's configuration says.

        Args:
            crop_pct: share in (0, 1] of the resized shorter side that a centred crop keeps. It replaces the model's own
                way to crop, squashed or bordered too.
            interpolation: ``bilinear`` or ``bicubic``.
        """
        if crop_pct is not None:
            self.crop_fraction, self.squash, self.border = crop_pct, False, None
        self.interpolation = interpolation or self.interpolation

    def freeze(self) -> Self:
        """Make the model quicker that will not be trained any more, which changes the model that was given.

        Its batch norms are folded into its convolutions (``folding``), its activations keep no copies
        (``activations``), and its depthwise convolutions take no slow way back (``convolutions``). Features differ by
        rounding alone; the digest stays that of the model as it was loaded. Returns the encoder.
        """
        generator = torch.Generator().manual_seed(0)
        example = torch.rand(1, 3, *self.shape, generator=generator).to(self.mean.device)
        with torch.inference_mode(False):  # folding tells tensors by their versions, which inference has none of
            fold_batch_norms(self, example.clone())
        spare_copies(self)
        widen_depthwise(self)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, dim)`` of images ``(b, 3, h, w)`` in [0, 1]."""
        normalised = (resize(images, self.shape) - self.mean) / self.std
        if normalised.device.type == "cpu":
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        if self.input_dtype is not None:
            normalised = normalised.to(self.input_dtype)
        whole = self.features in ("default", "projected")
        features: Tensor = self.model(normalised) if whole else self._pooled(normalised)
        return features.float()

    def _pooled(self, normalised: Tensor) -> Tensor:
        """Class token and mean patch token, after the model's final norm wherever it lies."""
        model: Any = self.model
        tokens: Tensor = model.forward_features(normalised)
        if tokens.ndim != 3:
            raise FeaturesError(f"it gives {tuple(tokens.shape)} instead of tokens: set features to default")
        kinds = {"class_token": tokens[:, 0], "mean_patch": tokens[:, model.num_prefix_tokens :].mean(1)}
        chosen = list(kinds.values()) if self.features == "both" else [kinds[self.features]]
        norm = getattr(model, "fc_norm", None)  # models that average by default normalise after pooling
        return torch.cat([part if norm is None else norm(part) for part in chosen], 1)

    @property
    def parts(self) -> Sequence[Part]:
        """The columns that are judged apart: all of them together, unless several encoders are joined."""
        return WHOLE

    @property
    def device(self) -> torch.device:
        """Where its weights lie and images are to be sent."""
        return self.mean.device

    @property
    def square(self) -> bool:
        """Whether the input is as high as wide."""
        return self.shape[0] == self.shape[1]

    def require_square(self, doing: str) -> None:
        """Raise ``SettingsError`` where the input is not square, which synthetic images are: ``doing`` needs them."""
        require_square(self.name, self.shape, doing)

    @property
    def resized(self) -> int | tuple[int, int]:
        """Pixels before the crop: of the shorter side, of models that squash of both, else ``(height, width)``."""
        height, width = (math.floor(side / self.crop_fraction) for side in self.shape)
        return height if self.square else (height, width)

    @property
    def preprocess(self) -> Preprocess:
        """Picture -> pixels, resized and cropped as timm does by the model's configuration.

        It holds no reference to the model, so that decoding processes can receive it cheaply.
        """
        crop = self.size if self.square else self.shape
        return Preprocess(self.resized, crop, self.interpolation, self.squash, self.border)

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """RGB picture -> ``(3, height, width)`` uint8: ``preprocess``, as a tensor."""
        preprocess = self.preprocess
        return lambda image: torch.from_numpy(preprocess(image))

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
            **({} if self.border is None else {"border": list(self.border)}),
            **({} if self.square else {"shape": list(self.shape)}),
        }


def first_difference(found: Mapping[str, Any], encoder: Encoder, images: bool = True) -> str | None:
    """What an artifact says of its encoder, ``describe`` then, against the encoder now: the first key that differs.

    Args:
        found: as written into the artifact.
        images: whether how real images are resized and cropped counts, which it does not for synthetic ones.
    """
    wanted = encoder.describe()
    keys = ["digest", "size", "shape", *(key for key in ("mean", "std") if key in found)]
    if images:
        keys += ["border", *(key for key in ("crop_fraction", "squash", "interpolation") if key in found)]
    return next((key for key in keys if found.get(key) != wanted.get(key)), None)


def require_square(name: str, shape: tuple[int, int], doing: str) -> None:
    """Raise ``SettingsError`` where an encoder's input is not square, as the synthetic images are that ``doing`` needs.

    Args:
        name: the encoder's.
        shape: height and width of its input in pixels.
    """
    if shape[0] != shape[1]:
        raise SettingsError(
            f"encoder {name!r} takes images of {shape[0]} x {shape[1]} pixels (height x width), and synthetic images "
            f"are square: {doing} is not possible with it. Its features of real images are (stages cache and kernels, "
            f"the method full); for the rest set a square input, "
            f"encoder_options: {{{name}: {{image_size: {min(shape)}}}}}"
        )


def _require_tokens(model: nn.Module, features: str) -> None:
    if features not in FEATURES:
        raise FeaturesError(f"features is {features!r}; it must be one of {', '.join(FEATURES)}")
    if features not in ("default", "projected") and not hasattr(model, "num_prefix_tokens"):
        raise FeaturesError("it has no tokens: set features to default")
    if features in ("class_token", "both") and getattr(model, "cls_token", None) is None:
        raise FeaturesError("it has no class token: set features to default or mean_patch")
