"""Every evaluation protocol by name: the one place to enter a new one."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROTOCOLS", "ProtocolEntry", "bound_of"]


@dataclass(frozen=True, kw_only=True)
class ProtocolEntry:
    """One protocol.

    Attributes:
        implementation: dotted name of the module whose ``train(subject, views)`` it is; imported when it runs.
        title: what people call it.
        of_images: whether ``evaluate.protocols`` may list it, for sets of images.
        clean: whether it is run on the images as they are.
        bank: whether it is run on a bank of augmented views, where ``evaluate.views`` asks for one.
        fresh: whether it can encode views afresh where no bank of them is asked for.
        of_all_data: whether it is also run on all real features, as an upper bound.
        across: whether it is for encoders other than the one that a set was distilled with, and for these alone.
        bound: the protocol on all real data that it is measured against; empty: itself.
    """

    implementation: str
    title: str
    of_images: bool = True
    clean: bool = False
    bank: bool = True
    fresh: bool = False
    of_all_data: bool = False
    across: bool = False
    bound: str = ""


PROTOCOLS: dict[str, ProtocolEntry] = {
    "sgd": ProtocolEntry(
        implementation="clpdd.evaluation.protocols.sgd", title="SGD linear probe", fresh=True, bound="logistic"
    ),
    "closed_form": ProtocolEntry(
        implementation="clpdd.evaluation.protocols.closed_form",
        title="closed-form ridge probe",
        clean=True,
        of_all_data=True,
    ),
    "logistic": ProtocolEntry(
        implementation="clpdd.evaluation.protocols.logistic",
        title="logistic regression",
        clean=True,
        of_all_data=True,
    ),
    "knn": ProtocolEntry(
        implementation="clpdd.evaluation.protocols.knn",
        title="nearest neighbours",
        clean=True,
        bank=False,
        bound="logistic",
    ),
    "inherit": ProtocolEntry(
        implementation="clpdd.evaluation.protocols.inherit",
        title="inherited classifier",
        clean=True,
        across=True,
        bound="logistic",
    ),
    "kd": ProtocolEntry(
        implementation="clpdd.evaluation.protocols.kd",
        title="SGD linear probe, taught",
        fresh=True,
        across=True,
        bound="logistic",
    ),
}


def bound_of(protocol: str) -> str:
    """The protocol on all real data that a protocol is measured against."""
    entry = PROTOCOLS.get(protocol)
    return entry.bound if entry is not None and entry.bound else protocol
