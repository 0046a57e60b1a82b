"""The hand-over: a ready linear classifier trained on a distilled set alone, and its use on images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..config.evaluate import EvaluateSettings
from ..datasets.decode import SUFFIXES, Undecodable, decode
from ..datasets.listing import max_file_bytes, read_file
from ..datasets.walking import files_below, is_folder, looks_like_image
from ..distilled.classifier import Classifier
from ..distilled.dataset import DistilledSet
from ..encoders.calling import encode
from ..encoders.encoder import Encoder
from ..errors import ArtifactError, DataError, SettingsError
from ..features.store import FeatureStore
from ..runtime.heap import freed_memory_kept
from .calibration import fit_temperature
from .closed_form import fit_ridge
from .linear import Probes
from .scoring import score
from .sgd import fit_sgd
from .views import Stream, ViewBank, encode_clean, encode_views

__all__ = ["PROBES", "Classifier", "Prediction", "chosen_in_words", "classify_files", "find_images", "train_classifier"]

PROBES = ("closed_form", "closed_form_clean", "sgd")
"""Ways to train a classifier: the ridge probe on augmented views, on the images as they are, and SGD on views."""

_CALIBRATION_VIEWS = 20  # of each image
_ROWS = 4096  # of real features, scored at once


def train_classifier(
    data: DistilledSet,
    encoder: Encoder,
    settings: EvaluateSettings | None = None,
    *,
    protocol: str = "best",
    validation: FeatureStore | None = None,
    seed: int = 0,
) -> Classifier:
    """Train a linear classifier on a distilled set and nothing else.

    Its probabilities are calibrated on further views of the same images (``fit_temperature``): without that they are
    near ``1/C`` even where it is right, since ridge regression fits no probabilities and Adam stops long before them.

    Args:
        data: the set; of a method with several draws the first one is used.
        encoder: any frozen encoder, also another than the set was distilled with.
        settings: all but ``protocols``, ``seeds`` and ``random_draws`` are used.
        protocol: one of ``PROBES``, or ``"best"``: the one with the highest top-1 on ``validation``, and
            ``"closed_form"``, which sets are optimised for, where there is none. Closed forms centre by the mean
            feature of the real images, which the set keeps for the encoder it was distilled with; with another one by
            the mean of the set's own views.
        validation: features of real images by the same encoder, with the classes of the set. They choose among
            ``PROBES``, which is all they do: no weight is fitted to them.

    Raises:
        ArtifactError: ``validation`` has other classes, or was made by another encoder.
        DataError: the set holds no images (method ``full``).
        SettingsError: an unknown protocol.
    """
    settings = settings or EvaluateSettings()
    if protocol not in (*PROBES, "best"):
        raise SettingsError(f"protocol is {protocol!r}; it must be one of best, {', '.join(PROBES)}")
    if not len(data):
        raise DataError(f"the set made by {data.name} holds no images, so nothing can be trained on it")
    encoder.require_square("training a classifier on a distilled set")
    lesson = _Lesson(data, encoder, settings, seed)
    used = settings.model_dump(mode="json", include={"views", "augment", "epochs", "learning_rate", "ridge"})
    info = {"dataset": data.info.get("dataset"), "method": data.name, "images": len(lesson.chosen)}
    if protocol == "best" and validation is not None and len(validation):
        _refuse_other(validation, data, encoder)
        probes = {name: lesson.probe(name) for name in lesson.different}
        top1 = {name: round(score(probe, validation.blocks(_ROWS)).top1[0], 4) for name, probe in probes.items()}
        protocol = max(top1, key=lambda name: top1[name])  # of equal ones the first
        probe = probes[protocol]
        info |= {"validation": {"images": len(validation), "top1": top1}}
    else:
        protocol = PROBES[0] if protocol == "best" else protocol
        probe = lesson.probe(protocol)
    weight, bias = probe.weights[0].T.cpu(), probe.bias[0].cpu()
    further = lesson.further()  # (V, n, d)
    logits = torch.nn.functional.linear(further.flatten(0, 1), weight, bias)
    temperature = fit_temperature(logits, torch.cat([lesson.chosen.targets.cpu()] * len(further)))
    info |= {"protocol": protocol, "temperature": temperature, "settings": used | {"seed": seed}}
    return Classifier(weight / temperature, bias / temperature, data.class_names, encoder.describe(), info)


def chosen_in_words(classifier: Classifier) -> str:
    """Which probe a classifier is, and by what it was chosen."""
    info = classifier.info
    if "validation" not in info:
        return f"the probe is {info['protocol']}: no validation images chose it"
    tried = ", ".join(f"{name} {value:.1f} %" for name, value in info["validation"]["top1"].items())
    return f"the probe is {info['protocol']}: the best on {info['validation']['images']:,} validation images ({tried})"


class _Lesson:
    """A set's features, encoded once for all probes that are trained on them."""

    def __init__(self, data: DistilledSet, encoder: Encoder, settings: EvaluateSettings, seed: int) -> None:
        self.data, self.chosen, self.encoder, self.settings = data, data.draws[0], encoder, settings
        self.stream, self.views = Stream(seed, 0), max(1, settings.views)

    @property
    def different(self) -> Sequence[str]:
        """``PROBES`` that are not the same: views of images that nothing augments are the images as they are."""
        return PROBES if self.settings.augment.active else [name for name in PROBES if name != "closed_form_clean"]

    def _view(self, which: range) -> Tensor:
        """Numbered views ``(1, V, n, d)``, or the images as they are where nothing is augmented."""
        batch, precision, augment = self.settings.encoder_batch, self.settings.precision, self.settings.augment
        if not augment.active:
            return self._clean[:, None]
        return encode_views(self.encoder, [self.chosen.images], [self.stream], which, augment, batch, precision)

    @cached_property
    def _bank(self) -> Tensor:
        return self._view(range(self.views))

    @cached_property
    def _clean(self) -> Tensor:
        """``(1, n, d)``."""
        batch, precision = self.settings.encoder_batch, self.settings.precision
        return encode_clean(self.encoder, self.chosen.images[None], batch, precision)

    def further(self) -> Tensor:
        """Views ``(V, n, d)`` float32 that no probe is trained on."""
        return self._view(range(self.views, self.views + min(self.views, _CALIBRATION_VIEWS)))[0].float().cpu()

    def probe(self, protocol: str) -> Probes:
        """One probe, by one of ``PROBES``."""
        settings, classes, labels = self.settings, self.data.classes, self.chosen.targets[None]
        if protocol == "sgd":
            views, rate = ViewBank(self._bank, [self.stream]), settings.learning_rate
            return fit_sgd(views, labels, classes, [self.stream], epochs=settings.epochs, learning_rate=rate)
        bank = self._clean[:, None] if protocol == "closed_form_clean" else self._bank
        Z, targets = bank.flatten(1, 2), torch.cat([labels] * bank.shape[1], dim=1)
        mean = _centre(self.data, self.encoder, Z[0])
        return fit_ridge(Z, targets, classes, mean, settings.ridge, self.encoder.parts)


def _refuse_other(store: FeatureStore, data: DistilledSet, encoder: Encoder) -> None:
    wrong = [key for key, value in encoder.describe().items() if key != "name" and store.encoder.get(key) != value]
    if store.class_names != data.class_names:
        wrong.append("classes")
    if wrong:
        raise ArtifactError(
            f"{store.path} is of another encoder or dataset than the set and differs in {', '.join(wrong)}: name a "
            f"probe with --protocol, one of {', '.join(PROBES)}"
        )


def _centre(data: DistilledSet, encoder: Encoder, Z: Tensor) -> Tensor:
    """The mean real feature ``(d,)`` where the set has it for this encoder, else that of its own features ``Z``."""
    made_with, mean = data.info.get("encoder", {}), data.info.get("feature_mean")
    if mean is None or any(made_with.get(key) != value for key, value in encoder.describe().items() if key != "name"):
        return Z.float().mean(0)
    return torch.tensor(mean, dtype=torch.float32)


# -- use ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """What one file shows: the likeliest classes first, with probabilities, or why it could not be read."""

    path: Path
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str | None = None


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Image files: those named, and of folders those below them (by suffix), sorted.

    Folders are walked as for an index (``clpdd.datasets.walking``): hidden files and clutter are passed over, links
    followed.

    Raises ``DataError`` for a path that does not exist, or when nothing is found.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = (entry for entry, _ in files_below(path) if looks_like_image(entry.name) and not is_folder(entry))
            found += sorted(Path(entry.path) for entry in below)
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path} does not exist")
    if not found:
        raise DataError(f"no image in {', '.join(map(str, paths))}: files are found by suffix ({', '.join(SUFFIXES)})")
    return found


@torch.no_grad()
def classify_files(
    classifier: Classifier,
    encoder: Encoder,
    files: Sequence[Path],
    *,
    top: int = 1,
    batch: int = 64,
    max_pixels: int = 50_000_000,
) -> Iterator[Prediction]:
    """The ``top`` likeliest classes of every file, in order; a file that cannot be read does not stop the others.

    Args:
        top: at least 1; at most as many classes as there are come back.
        batch: files read and encoded at once.
        max_pixels: see ``decode_image``.

    Raises:
        ArtifactError: the encoder is not the classifier's.
        SettingsError: ``top`` is below 1.
    """
    classifier.check(encoder)
    if top < 1:
        raise SettingsError(f"top is {top}; it must be at least 1")
    for first in range(0, len(files), batch):
        part = files[first : first + batch]
        pixels: list[Tensor] = []
        problems: dict[int, str] = {}
        for i, path in enumerate(part):
            try:
                data = read_file(path, max_file_bytes(max_pixels))
                pixels.append(encoder.transform(decode(data, max_pixels)))
            except Undecodable as problem:
                problems[i] = f"{path}: the image {problem}"
        likely: list[tuple[list[int], list[float]]] = []
        if pixels:
            with freed_memory_kept():
                features = encode(encoder, torch.stack(pixels), batch)
            scores = classifier(features)
            found = scores.topk(min(top, len(classifier.class_names)), 1)
            likely = list(zip(found.indices.tolist(), found.values.tolist(), strict=True))[::-1]
        for i, path in enumerate(part):
            if i in problems:
                yield Prediction(path, problem=problems[i])
            else:
                labels, values = likely.pop()
                yield Prediction(path, tuple(classifier.class_names[c] for c in labels), tuple(values))
