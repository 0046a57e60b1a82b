"""What takes the encoder to tell: where images lie in feature space, and what the handed-over probe gets wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config.evaluate import EvaluateSettings
from ..datasets.index import Index
from ..distilled.dataset import DistilledSet
from ..encoders.encoder import Encoder
from ..features.kernels import Kernels
from ..features.same_images import refuse_other_images
from ..features.store import FeatureStore
from ..probe.classifier import Classifier, train_classifier
from ..probe.views import encode_clean
from ..storage.layout import Layout
from .axes import Scatter, scatter
from .data import MOST_ENCODED
from .pictures import Picture, fit

__all__ = ["Insight", "Mistake", "look_closer", "mistakes"]

_MOST_VIEWS = 20_000  # with more of them only the probe of the images as they are is trained
_SHOWN = 12
_PICTURES = 250_000  # bytes of base64 text
_ROWS = 4096


@dataclass(frozen=True)
class Mistake:
    """A test image that is taken for another class, with the probability that is given to it in percent."""

    name: str
    true: str
    predicted: str
    confidence: float
    picture: Picture


@dataclass(frozen=True)
class Insight:
    """What ``look_closer`` finds.

    Attributes:
        space: real features and the images of sets.
        probe: the classifier that ``clpdd probe`` hands over; ``None`` where its set was too large to train it here.
        top1: percent of the test images that it takes rightly.
        wrong: how many it does not.
        tested: how many there are.
        mistakes: those it is surest of.
    """

    space: Scatter
    probe: Classifier | None = None
    top1: float = 0.0
    wrong: int = 0
    tested: int = 0
    mistakes: tuple[Mistake, ...] = ()


def look_closer(
    layout: Layout,
    encoder: Encoder,
    method: str,
    sets: Mapping[str, DistilledSet],
    settings: EvaluateSettings,
    seed: int,
) -> Insight | None:
    """Encode a set as it is, and train and judge the probe that ``clpdd probe`` would hand over.

    Nothing is chosen by the test split: validation images choose the probe, and test images are judged.

    Args:
        method: the set that the page is about.
        sets: all of this encoder, by method.

    Returns:
        ``None`` where the set holds no images, or more than a page's worth.

    Raises:
        ArtifactError: features, moments or the index are missing or damaged, or the features of other images.
    """
    name, chosen = encoder.name, sets[method].draws[0]
    if not 0 < len(chosen) <= MOST_ENCODED:
        return None
    stores = {split: FeatureStore.open(layout.features(name, split)) for split in ("train", "validation", "test")}
    index = Index.open(layout.index("test"))
    refuse_other_images(stores["test"], index)
    kernels = Kernels.load(layout.kernels(name))
    batch, precision = settings.encoder_batch, settings.precision

    def encoded(data: DistilledSet) -> tuple[Tensor, Tensor]:
        return encode_clean(encoder, data.images[None], batch, precision)[0].float().cpu(), data.labels

    central = None if method == "centroid" else sets.get("centroid")
    shown = {"central": encoded(central)} if central is not None and 0 < len(central) <= MOST_ENCODED else {}
    space = scatter(kernels, stores["train"], shown | {"distilled": encoded(chosen)})
    protocol = "best" if len(chosen) * max(1, settings.views) <= _MOST_VIEWS else "closed_form_clean"
    validation = stores["validation"] if protocol == "best" else None
    probe = train_classifier(chosen, encoder, settings, protocol=protocol, validation=validation, seed=seed)
    wrong, found = mistakes(probe, stores["test"], index)
    tested = len(stores["test"])
    return Insight(space, probe, 100 * (tested - wrong) / max(1, tested), wrong, tested, found)


@torch.no_grad()
def mistakes(probe: Classifier, test: FeatureStore, index: Index) -> tuple[int, tuple[Mistake, ...]]:
    """How many test images are taken wrongly, and those of them that the probe is surest of."""
    rows, sure, taken = [], [], []
    for start, (Z, labels) in zip(range(0, len(test), _ROWS), test.blocks(_ROWS), strict=True):
        best = probe(Z).max(1)
        off = (best.indices != labels).nonzero().flatten()
        rows.append(off + start)
        sure.append(best.values[off])
        taken.append(best.indices[off])
    where, confidence, labels = (torch.cat(parts) if parts else torch.zeros(0) for parts in (rows, sure, taken))
    order = confidence.argsort(descending=True, stable=True)[:_SHOWN].tolist()
    shown = [np.array(index.image(int(where[k])).convert("RGB")).transpose(2, 0, 1) for k in order]
    pictures = fit(shown, _PICTURES)
    names = test.class_names
    found = [
        Mistake(
            name=test.ids[int(where[k])],
            true=names[int(test.labels[int(where[k])])],
            predicted=names[int(labels[k])],
            confidence=100 * float(confidence[k]),
            picture=picture,
        )
        for k, picture in zip(order, pictures, strict=True)
    ]
    return len(where), tuple(found)
