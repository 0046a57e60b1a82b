"""What a method is given at its start, and images to start from."""

from __future__ import annotations

from pathlib import Path

import torch

from clpdd.config.distill import DistillSettings
from clpdd.datasets.index import Index
from clpdd.distributed.group import ALONE, Ranks
from clpdd.encoders.encoder import Encoder
from clpdd.features.kernels import Kernels
from clpdd.features.store import FeatureStore
from clpdd.functional.seeding import generator
from clpdd.optimise.context import Context
from clpdd.storage.layout import Layout

from .conftest import World


def open_context(
    index: Path, layout: Layout, encoder: Encoder, work: Path, settings: DistillSettings, ranks: Ranks = ALONE
) -> Context:
    """From the artifacts of ``encoder`` in a data folder; partial work goes to ``work``."""
    return Context(
        settings=settings,
        seed=0,
        encoder=encoder,
        index=Index.open(index),
        train=FeatureStore.open(layout.features(encoder.name, "train")),
        validation=FeatureStore.open(layout.features(encoder.name, "validation")),
        kernels=Kernels.load(layout.kernels(encoder.name)),
        work=work,
        ranks=ranks,
    )


def context(world: World, work: Path, **settings: object) -> Context:
    """Of the world, with these settings of ``distill``."""
    chosen = DistillSettings(**settings)  # type: ignore[arg-type]
    return open_context(world.layout.index("train"), world.layout, world.encoder, work, chosen)


def start(n: int = 10, size: int = 64) -> torch.Tensor:
    """Images ``(n, 3, size, size)`` in [0, 1)."""
    return torch.rand(n, 3, size, size, generator=generator(0, "test"))
