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
        bound: the protocol on all real data that it is measured against; empty: itself.
    """

    implementation: str
    title: str
    of_images: bool = True
    clean: bool = False
    bank: bool = True
    fresh: bool = False
    of_all_data: bool = False
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
        of_images=False,
        of_all_data=True,
    ),
}


def bound_of(protocol: str) -> str:
    """The protocol on all real data that a protocol is measured against."""
    entry = PROTOCOLS.get(protocol)
    return entry.bound if entry is not None and entry.bound else protocol
