"""A timm model as it is built for an input size, with weights that are proven to fit it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..errors import ArtifactError, SettingsError, one_line
from .conversion import unloaded
from .encoder import Encoder
from .names import SOURCES, own_module
from .shapes import input_shape
from .weights import fit, read_weights

__all__ = ["REFUSALS", "Blueprint", "channels_last", "encoder_of", "settle"]

REFUSALS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, ArithmeticError)
"""What timm's models raise at inputs and arguments that they are not made for."""


@dataclass(frozen=True)
class Blueprint:
    """Which model to build.

    Attributes:
        name: what its user calls the encoder.
        architecture: timm's name of it, ``hf-hub:...`` or ``local-dir:...``.
        weights: a local safetensors file; ``None`` takes the model's own.
        image_size: side of the input in pixels; ``None`` takes the model's own.
        untrained: seed of random weights in place of any others.
        arguments: further ones for the model's constructor.
    """

    name: str
    architecture: str
    weights: Path | None = None
    image_size: int | None = None
    untrained: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def candidates(self) -> Iterator[tuple[nn.Module, tuple[int, int]]]:
        """Models with their weights, and the height and width they are for, the better first.

        Some models must be built for an image size (``img_size``), others take any as they are, and of the former some
        cannot carry their weights over to it. Which is which shows only in trying.

        Raises:
            SettingsError: arguments that the model refuses.
            ArtifactError: weights that cannot be had or do not fit.
        """
        own = self._own()
        native = input_shape(own)
        if self.image_size is None or native == (self.image_size, self.image_size):
            yield self._loaded(own), native
            return
        shape = (self.image_size, self.image_size)
        sized = self._sized()
        refused: ArtifactError | None = None
        if sized is not None:
            try:
                if self._file is not None:
                    self._loaded(sized)
                else:
                    fit(sized, own.state_dict(), "its own weights")
                yield sized, shape
            except ArtifactError as error:
                refused = error
        try:
            yield self._loaded(own), shape
        except ArtifactError as error:
            raise refused or error from None

    @property
    def _file(self) -> Path | None:
        """The safetensors file to load: the one given, or that of a model's folder."""
        folder = Path(self.architecture.removeprefix("local-dir:"))
        own = folder / "model.safetensors" if self.architecture.startswith("local-dir:") else None
        file = self.weights or (own if own is not None and own.is_file() else None)
        return file if self.untrained is None else None

    def create(self, **more: Any) -> nn.Module:
        """timm's model without a classifier, its random weights a function of ``untrained``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.untrained or 0)
            return timm.create_model(self.architecture, **({"num_classes": 0} | dict(self.arguments) | more))

    def _own(self) -> nn.Module:
        try:
            return self._noted() if self._file is not None else self.create(pretrained=self.untrained is None)
        except (TypeError, AssertionError, AttributeError) as error:
            raise SettingsError(
                f"encoder {self.name!r}: timm cannot build {self.architecture} with the arguments "
                f"{dict(self.arguments)} ({one_line(error)})"
            ) from error
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise self._unavailable(error) from error

    def _sized(self) -> nn.Module | None:
        try:
            return self._noted(img_size=self.image_size)
        except REFUSALS:
            return None

    def _noted(self, **more: Any) -> nn.Module:
        """Without weights, and with the conversion that timm would load them through."""
        try:
            with unloaded():
                return self.create(pretrained=True, **more)
        except (*REFUSALS, OSError):  # an architecture that loads by itself what it cannot have here
            return self.create(**more)

    def _loaded(self, model: nn.Module) -> nn.Module:
        """``model`` with the weights of the file, where there is one."""
        if self._file is not None:
            fit(model, read_weights(self._file), str(self._file), head=self._head)
        return model

    def _head(self, own: Mapping[str, Tensor]) -> set[str]:
        """Names of the weights that the model has with its classifier and lacks without."""
        try:
            with torch.device("meta"):
                whole = self.create(num_classes=1000)
        except REFUSALS:  # some models compute with values when they are built
            whole = self.create(num_classes=1000)
        return set(whole.state_dict()) - set(own)

    def _unavailable(self, error: Exception) -> ArtifactError:
        """Weights or a configuration that cannot be fetched, and how to bring them."""
        if self.architecture.startswith("local-dir:"):
            folder = self.architecture.removeprefix("local-dir:")
            return ArtifactError(
                f"encoder {self.name!r}: no model can be read from {folder} ({one_line(error)}). It must hold "
                f"config.json and model.safetensors, as timm's models are saved with"
            )
        if self.architecture.startswith(SOURCES):
            return self._unreachable(error)
        key = self.name if _plain(self.name) else "mine"
        model = "" if key == self.architecture else f"model: {self.architecture}, "
        return ArtifactError(
            f"the pre-trained weights of {self.name!r} cannot be had ({one_line(error)}). Without a connection, "
            f"download the .safetensors file of {self.architecture} elsewhere and set "
            f"encoder_options: {{{key}: {{{model}weights: path/to/file.safetensors}}}} in the settings file, or pass "
            f"--weights FILE to clpdd run"
        )

    def _unreachable(self, error: Exception) -> ArtifactError:
        """A repository of the hub that is out of reach: its configuration is needed, whatever the weights."""
        key, repository = self.name if _plain(self.name) else "mine", self.architecture.split(":", 1)[1]
        known = repository.split("/")[-1].split("@")[0]
        options = f"model: local-dir:path/to/folder{f', weights: {self.weights}' if self.weights else ''}"
        remedy = (
            f"fetch it where there is one (hf download {repository} --local-dir path/to/folder) and set "
            f"encoder_options: {{{key}: {{{options}}}}}"
        )
        if timm.is_model(known.split(".")[0]):
            weights = self.weights or "path/to/file.safetensors"
            remedy = (
                f"timm builds the same model by its own name: set encoder_options: {{{key}: {{model: {known}, "
                f"weights: {weights}}}}}"
            )
        return ArtifactError(
            f"{self.architecture!r}, the model of encoder {self.name!r}, cannot be had ({one_line(error)}). Without a "
            f"connection, {remedy}"
        )


def encoder_of(
    blueprint: Blueprint,
    built: nn.Module,
    shape: tuple[int, int],
    features: str = "default",
    normalisation: str = "own",
) -> Encoder:
    """A candidate as an encoder. Raises one of ``REFUSALS`` where it cannot encode an image of ``shape``."""
    own = own_module(blueprint.architecture, built)
    return Encoder(blueprint.name, channels_last(built), shape, features, own, normalisation)


def _plain(name: str) -> bool:
    return not any(character in name for character in "/\\:@ ")


def channels_last(model: nn.Module) -> nn.Module:
    """``model`` with its images-like weights in the layout that convolutions are quickest in.

    Only tensors of four dimensions have it: those of others (LambdaNets convolve in three) are left as they are.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return model


@torch.no_grad()
def settle(model: nn.Module, shape: tuple[int, int]) -> None:
    """Make random weights behave like trained ones: branches that begin at zero count, and no feature explodes.

    Scales that are initialised to zero or next to it, which cut whole branches off until they are trained, become 0.1,
    and batch norms take the statistics of random images of ``shape`` pixels.
    """
    for name, weight in model.named_parameters():
        if weight.ndim < 2 and not name.endswith("bias") and weight.abs().max() < 1e-2:
            weight.fill_(0.1)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    norms = [layer for layer in norms if layer.track_running_stats]
    momenta = [layer.momentum for layer in norms]
    model.eval()
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    if norms:
        model(torch.randn(4, 3, *shape, generator=torch.Generator().manual_seed(0)))
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
