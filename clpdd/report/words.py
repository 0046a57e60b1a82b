"""Words for what tables hold as codes."""

from __future__ import annotations

from collections.abc import Collection

from ..catalogue.protocols import bound_of

__all__ = ["classifier_in_words", "probe_in_words", "views_in_words"]


def views_in_words(views: str, of_each: bool = True) -> str:
    """The ``views`` column in words: which images the probe was trained on."""
    kind, _, count = views.partition("-")
    if kind == "bank" and count.isdigit():
        return f"{int(count):,} augmented views{' of each image' if of_each else ''}"
    return {"fresh": "images augmented afresh every epoch", "clean": "images as they are"}.get(views, views)


def probe_in_words(protocol: str, judging: Collection[str]) -> str:
    """What a probe is, to those who know it by its name alone; empty for one that needs no words.

    Args:
        judging: the protocols by which sets are judged, in order. Others are there as their bound alone.
    """
    if protocol == "logistic" and protocol not in judging:
        bounded = ", ".join(name for name in judging if bound_of(name) == protocol)
        return "logistic regression on all training images" + (f", the bound of {bounded}" if bounded else "")
    return _PROBES.get(protocol, "")


_PROBES = {
    "sgd": "the protocol of the field, a linear layer trained by Adam: compares with numbers of papers",
    "closed_form": "ridge regression, solved exactly: mostly what `clpdd probe` hands over",
    "logistic": "logistic regression, its strength chosen on validation images",
    "knn": "nearest neighbours by cosine, how many of them chosen on validation images",
    "inherit": "the distilling encoder's classifier of all training images, behind a linear map of other features",
    "kd": "sgd with another encoder, taught by the distilling encoder's classifier of all training images",
}


def classifier_in_words(protocol: str) -> str:
    """What a classifier of ``probe.classifier.PROBES`` is."""
    return {
        "closed_form": "ridge probe trained on augmented views",
        "closed_form_clean": "ridge probe trained on the images as they are",
        "sgd": "SGD linear probe",
    }.get(protocol, protocol)
