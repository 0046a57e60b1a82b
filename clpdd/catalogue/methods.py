"""Every method by name: the one place to enter a new one.

An entry says where the method is implemented and what others must know of it without importing torch. A setting that
is added later counts for every method until its entry says otherwise, so that no old result is taken for a new one.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["METHODS", "MethodEntry", "selects"]


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """One method.

    Attributes:
        implementation: ``"module:Class"``, a ``clpdd.optimise.context.Method``; imported when the method runs.
        title: what people call it.
        optimises: whether it optimises images; others choose real ones.
        passes: encoder passes that one augmented view costs in a step, forward and backward counted apart.
        unused: fields of ``DistillSettings`` that do not decide its result: changing them does not run it again.
        source: field of ``DistillSettings`` that names another method, whose set it is given; empty: none.
        most_per_class: images per class that it can choose at most; 0: any number.
        start: ``centroid`` where it always begins with central images, which ``kernels.nearest`` must then hold.
        images: whether its set holds images.
        features: whether it reads the cached features or what the stage kernels made of them; of starting images and
            labels, which any method may take from there, the settings tell.
    """

    implementation: str
    title: str
    optimises: bool = False
    passes: int = 0
    unused: tuple[str, ...] = ()
    source: str = ""
    most_per_class: int = 0
    start: str = ""
    images: bool = True
    features: bool = True


_OPTIMISATION = (
    "label_learning_rate",
    "steps",
    "learning_rate",
    "schedule",
    "objective",
    "ridge",
    "centre",
    "outer_batch",
    "own_share",
    "augmentations",
    "augment",
    "parameterisation",
    "extend_every",
    "decorrelate",
    "initialisation",
    "compile",
    "keep",
    "validate_every",
    "preview_every",
)
"""What decides how images are optimised; methods that choose real images use none of it."""

_PEER = ("objective", "temperature", "outer_batch", "neighbor_of", "random_draws", "own_share")
"""What methods that optimise images by another loss than CLP-DD's have no use for."""

_REAL = (*_OPTIMISATION, "temperature", "encoder_batch", "precision", "neighbor_of")

_CORESET = (*_REAL, "random_draws")

METHODS: dict[str, MethodEntry] = {
    "clp": MethodEntry(
        implementation="clpdd.methods.clp:Clp",
        title="CLP-DD",
        optimises=True,
        passes=2,
        unused=("neighbor_of", "random_draws", "own_share"),
    ),
    "lgm": MethodEntry(
        implementation="clpdd.methods.lgm:Lgm",
        title="LGM",
        features=False,
        optimises=True,
        passes=3,  # a real image is seen with every view
        unused=_PEER,
    ),
    "sfm": MethodEntry(
        implementation="clpdd.methods.sfm:Sfm",
        title="SFM",
        optimises=True,
        passes=2,
        unused=_PEER,
    ),
    "sfm-decouple": MethodEntry(
        implementation="clpdd.methods.sfm_decouple:SfmDecouple",
        title="SFM, decoupled",
        optimises=True,
        passes=2,
        unused=tuple(name for name in _PEER if name != "own_share"),
    ),
    "random": MethodEntry(
        implementation="clpdd.methods.real:Random", title="random real images", unused=_REAL, features=False
    ),
    "centroid": MethodEntry(
        implementation="clpdd.methods.real:Centroid",
        title="most central real images",
        unused=_CORESET,
        start="centroid",
    ),
    "k-centre": MethodEntry(implementation="clpdd.methods.k_centre:KCentre", title="k-centre coreset", unused=_CORESET),
    "herding": MethodEntry(implementation="clpdd.methods.herding:Herding", title="herding coreset", unused=_CORESET),
    "k-medoids": MethodEntry(
        implementation="clpdd.methods.k_medoids:KMedoids", title="k-medoids coreset", unused=_CORESET
    ),
    "facility-location": MethodEntry(
        implementation="clpdd.methods.facility_location:FacilityLocation",
        title="facility location coreset",
        unused=_CORESET,
    ),
    "ridge-greedy": MethodEntry(
        implementation="clpdd.methods.ridge_greedy:RidgeGreedy",
        title="greedy ridge coreset",
        unused=tuple(name for name in _CORESET if name != "ridge"),
        most_per_class=10,
    ),
    "neighbor": MethodEntry(
        implementation="clpdd.methods.real:Neighbor",
        title="nearest real images",
        source="neighbor_of",
        unused=("random_draws", "own_share"),
    ),
    "full": MethodEntry(
        implementation="clpdd.methods.real:Full",
        title="all training images",
        unused=(*_REAL, "images_per_class", "labels", "image_size", "random_draws"),
        images=False,
    ),
}
"""Name -> entry. ``METHODS[name].implementation`` is imported by ``clpdd.methods.loading.load_method``."""


def selects(name: str) -> bool:
    """Whether ``name`` is a method that takes real images as they are; a variant is none: ask for its method."""
    return name in METHODS and not METHODS[name].optimises
