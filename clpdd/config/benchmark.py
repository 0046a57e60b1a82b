"""The section ``benchmark``."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from .domains import Count, NonNegativeReal, PerClass, Positive, PositiveReal, Section, once

__all__ = ["Ablation", "BenchmarkSettings"]


Ablation = Literal[
    "objective",
    "outer_batch",
    "temperature_ridge",
    "parameterisation",
    "decorrelation",
    "augmentation",
    "views",
    "initialisation",
    "centring",
]


class BenchmarkSettings(Section):
    """Methods against each other by the clock (``clpdd.benchmark``)."""

    encoders: Annotated[list[str], AfterValidator(once)] = []
    methods: Annotated[list[str], Field(min_length=1), AfterValidator(once)] = [
        "clp",
        "sfm",
        "lgm",
        "clp-no-dsa",
        "lgm-no-dsa",
        "k-centre",
        "herding",
        "k-medoids",
        "facility-location",
        "ridge-greedy",
        "random",
        "centroid",
        "full",
    ]
    images_per_class: Annotated[list[PerClass], Field(min_length=1), AfterValidator(once)] = [1]
    seeds: Annotated[int, Field(ge=1, le=1000)] = 2
    steps: Positive | None = 100
    halvings: Annotated[int, Field(ge=0, le=16)] = 3
    peers: dict[str, str] = {"sfm": "clp", "lgm": "clp", "lgm-no-dsa": "clp-no-dsa"}
    time_factor: Annotated[float, Field(ge=1, le=1000)] = 10.0
    probe_seeds: Annotated[int, Field(ge=1, le=1000)] = 2
    views: Count = 20
    transfer_to: Annotated[list[str], AfterValidator(once)] = []
    ablations: Annotated[list[Ablation], AfterValidator(once)] = list(get_args(Ablation))
    temperatures: Annotated[list[PositiveReal], Field(min_length=1), AfterValidator(once)] = [0.02, 0.05, 0.1, 0.3, 1.0]
    ridges: Annotated[list[NonNegativeReal], Field(min_length=1), AfterValidator(once)] = [0.1, 0.3, 1.0, 3.0, 10.0]

    @model_validator(mode="after")
    def _peers_known(self) -> Self:
        for peer, reference in self.peers.items():
            if peer in self.methods and reference not in self.methods:
                raise ValueError(
                    f"peers gives {peer} {self.time_factor:g} times the time of {reference}, which methods does not "
                    f"list: list it, or take {peer} out"
                )
            if peer in self.methods and self.methods.index(peer) < self.methods.index(reference):
                raise ValueError(f"methods lists {peer} before {reference}, whose time it is given: swap them")
        return self
