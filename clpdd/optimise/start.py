"""The real images that optimisation may start from."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SettingsError
from ..features.by_class import ClassFeatures
from ..functional import coreset_memory
from ..functional.coresets import k_medoids
from ..functional.seeding import generator
from .context import Context

__all__ = ["medoid_rows", "nearest_rows", "real_images"]


def real_images(context: Context, rows: list[int]) -> Tensor:
    """Training images ``(len(rows), 3, size, size)`` uint8, resized and centre-cropped as the encoder asks for."""
    transform = context.encoder.transform
    pictures = torch.stack([transform(context.index.image(row)) for row in rows])
    if context.size == context.encoder.size:
        return pictures
    wanted = (context.size, context.size)
    resized = torch.nn.functional.interpolate(pictures.float(), wanted, mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def nearest_rows(context: Context) -> list[int]:
    """Rows of the training images nearest to each class mean, class by class, as many as a class is to have.

    Raises ``SettingsError`` when a class has fewer images, or fewer were kept by the kernel stage.
    """
    nearest = context.kernels.nearest
    rows: list[int] = []
    for label, (ipc, have) in enumerate(zip(context.per_class, (nearest >= 0).sum(1).tolist(), strict=True)):
        if ipc > have:
            raise SettingsError(
                f"distill.images_per_class is {ipc} for class {context.index.class_names[label]!r}, but only {have} "
                f"central images of it are known: lower it, or raise kernels.nearest (now {nearest.shape[1]}) if the "
                f"classes are large enough"
            )
        rows += nearest[label, :ipc].tolist()
    return rows


def medoid_rows(context: Context) -> list[int]:
    """Rows of the training images nearest to the centres of k-means in each class, class by class.

    One image per class is the one nearest to the class mean; of several each stands for another part of its class.
    Raises ``SettingsError`` when a class has fewer images than it is to have.
    """
    dim, wanted = context.train.dim, context.per_class
    if max(wanted) == 1:
        return nearest_rows(context)  # the same, without a pass over the features
    features = ClassFeatures(
        context.train,
        context.kernels,
        context.encoder.parts,
        "distill.initialisation: medoids",
        lambda label, n: coreset_memory.k_medoids(n, dim, wanted[label]),
    )
    for label, (ipc, have) in enumerate(zip(context.per_class, features.counts, strict=True)):
        if ipc > have:
            raise SettingsError(
                f"distill.images_per_class is {ipc} for class {context.index.class_names[label]!r}, which has {have} "
                f"training images: lower it, or choose another distill.initialisation than medoids"
            )
    rows: list[int] = []
    for label, members, Z in features:
        chosen = k_medoids(Z, context.per_class[label], generator(context.seed, "start", label))
        rows += members[chosen].tolist()
    return rows
