"""Supervised training of a small encoder from scratch: the recipe of the weights that ship with the package.

    clpdd pretrain --images 'tiny-imagenet-100-train.parquet' --out clpdd_resnet14.tin100.safetensors

AdamW with a one-cycle schedule on random resized crops, flips and colour changes. A share of every batch is shrunk
and enlarged again: the encoder is meant for images of 8 to 64 pixels, and blurred input is what small images
enlarged to its input size look like.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from ..config.dataset import DatasetSettings
from ..datasets.decode import Undecodable, decode_image
from ..datasets.sources.parquet import expand, list_tables
from ..errors import DataError
from ..storage.files import write_bytes
from . import architectures  # noqa: F401  (registers our architectures with timm)
from .building import channels_last
from .names import check_architecture

__all__ = ["Recipe", "load_images", "pretrain"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of ``pretrain``; the defaults made the shipped weights."""

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 3e-3  # peak of the one-cycle schedule
    weight_decay: float = 0.05
    label_smoothing: float = 0.05  # [0, 1)
    crop_area: float = 0.3  # smallest share of the image that a crop keeps, (0, 1]
    low_resolution: float = 0.4  # share of each batch that is shrunk and enlarged again, [0, 1]
    smallest_side: int = 20  # pixels it is shrunk to at least
    grey: float = 0.1  # share of images without colour, [0, 1]
    seed: int = 0


def _crop_and_flip(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    n = len(images)
    area = torch.empty(n).uniform_(recipe.crop_area, 1.0, generator=generator)
    aspect = torch.empty(n).uniform_(-math.log(4 / 3), math.log(4 / 3), generator=generator).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    flip = (torch.rand(n, generator=generator) < 0.5) * 2.0 - 1.0
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    theta[:, 0, 2] = (torch.rand(n, generator=generator) * 2 - 1) * (1 - width)
    theta[:, 1, 2] = (torch.rand(n, generator=generator) * 2 - 1) * (1 - height)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _recolour(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    n = len(images)

    def factors(low: float) -> Tensor:
        return torch.empty(n, 1, 1, 1).uniform_(low, 1.3, generator=generator)

    images = images * factors(0.7)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * factors(0.7) + mean
    saturation = factors(0.5)
    saturation[torch.rand(n, generator=generator) < recipe.grey] = 0
    grey = images.mean(1, keepdim=True)
    return (images - grey) * saturation + grey


def _augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """``images (b, 3, s, s)`` in [0, 1], in random order; the first share of the batch loses its detail."""
    images = _crop_and_flip(images, recipe, generator)
    blurred, size = int(len(images) * recipe.low_resolution), images.shape[-1]
    if blurred:
        small = int(
            torch.randint(recipe.smallest_side, max(recipe.smallest_side + 1, size * 3 // 4), (1,), generator=generator)
        )
        shrunk = F.interpolate(images[:blurred], size=small, mode="bilinear", antialias=True)
        images = torch.cat([F.interpolate(shrunk, size=size, mode="bicubic").clamp(0, 1), images[blurred:]])
    return _recolour(images, recipe, generator)


def pretrain(
    images: Tensor, labels: Tensor, out: Path | str, architecture: str = "clpdd_resnet14", recipe: Recipe | None = None
) -> Path:
    """Train ``architecture`` to classify and save its float16 weights.

    Args:
        images: ``(N, 3, s, s)`` uint8.
        labels: ``(N,)`` int64 in ``[0, C)``, every class present.
        out: a ``.safetensors`` file; ``<out>.json`` beside it records the recipe and the loss per epoch.
        architecture: any timm model name; created without pre-trained weights.

    Returns:
        The path of the weights.

    Raises:
        DataError: fewer images than one batch, or labels that leave a class empty.
        SettingsError: an unknown architecture.
    """
    check_architecture(architecture, "architecture")
    recipe = recipe or Recipe()
    classes = int(labels.max()) + 1
    if len(images) < recipe.batch_size or len(labels.unique()) != classes:
        raise DataError(f"pre-training needs at least {recipe.batch_size} images and no empty class; got {len(images)}")
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    model = channels_last(timm.create_model(architecture, num_classes=classes))
    config = timm.data.resolve_data_config({}, model=model)
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    per_epoch = len(images) // recipe.batch_size
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.epochs * per_epoch
    )
    history, start = [], time.monotonic()
    for epoch in range(recipe.epochs):
        order, total, right = torch.randperm(len(images), generator=generator), 0.0, 0
        for rows in order[: per_epoch * recipe.batch_size].split(recipe.batch_size):
            batch = (_augment(images[rows].float() / 255, recipe, generator) - mean) / std
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
            right += int((logits.argmax(1) == labels[rows]).sum())
        history.append({"loss": total / per_epoch, "train_top1": 100 * right / (per_epoch * recipe.batch_size)})
        rate = (epoch + 1) * per_epoch * recipe.batch_size / (time.monotonic() - start)
        log.info("epoch %d/%d %s %.0f images/s", epoch + 1, recipe.epochs, history[-1], rate)
        _save(model, Path(out))
    record = {"architecture": architecture, "recipe": asdict(recipe), "images": len(images), "history": history}
    write_bytes(Path(out).with_suffix(".json"), json.dumps(record, indent=2).encode())
    return Path(out)


def _save(model: nn.Module, out: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    write_bytes(out, save({k: v.contiguous() for k, v in state.items()}))


def load_images(files: list[str], size: int = 64) -> tuple[Tensor, Tensor]:
    """Images ``(N, 3, size, size)`` uint8 and labels ``(N,)`` of Parquet files in Hugging Face layout.

    Raises ``DataError`` for files, labels or images that cannot be read.
    """
    tables = {"train": expand(files, Path("."), "--images")}
    listing = list_tables(tables, DatasetSettings(name="parquet", train=files)).listings["train"]
    arrays = []
    for row, data in enumerate(listing.read(range(len(listing.labels)))):
        if isinstance(data, Undecodable):
            raise DataError(f"{listing.where(row)}: the image {data}")
        decoded = decode_image(data, 50_000_000, listing.where(row))
        if decoded.size != (size, size):
            decoded = decoded.resize((size, size), Image.Resampling.BICUBIC)
        arrays.append(np.asarray(decoded))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(listing.labels)
