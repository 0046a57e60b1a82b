"""The digest of a stage's code against what the stage has really loaded, each in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from clpdd.catalogue.encoders import ARCHITECTURES
from clpdd.catalogue.protocols import PROTOCOLS
from clpdd.config.distill import DistillSettings
from clpdd.datasets.sources.loading import module_of as reader_of
from clpdd.methods.loading import modules_of
from clpdd.storage.provenance import code_files, decides_nothing

from .clones import Clone

BESIDE = {
    "clpdd.storage.ownership": "refuses what belongs to other settings, and computes nothing",
    "clpdd.config": "reads the settings: the values that decide a stage are in its fingerprint, whoever has read them",
    "clpdd.stages.project": "hands a stage its settings and paths",
    "clpdd.storage.layout": "knows where artifacts lie: the digests of those that are read are in the fingerprint",
    "clpdd.__main__": "starts the command line",
    "clpdd.cli": "reads the line and calls the stage",
    "clpdd.distributed": "counts the processes of a run",
    "clpdd.encoders.loading": "builds the encoder, whose record in the fingerprint has the digest of model and weights",
    "clpdd.encoders.building": "builds the model: the same",
    "clpdd.encoders.conversion": "reads weights: the same",
    "clpdd.encoders.coverage": "measures what an encoder sees, to refuse image sizes",
    "clpdd.encoders.names": "knows names, to refuse others",
    "clpdd.encoders.shapes": "knows which image size a model is for: that of an encoder is in its record",
    "clpdd.encoders.sight": "refuses image sizes",
    "clpdd.encoders.weight_names": "reads weights: the same",
    "clpdd.encoders.weights": "reads weights: the same",
    "clpdd.encoders.joint": "joins encoders: its class is in the digest wherever an encoder is one",
}
"""Modules and folders that a stage may load beyond its digest, and why they decide nothing that is not in it."""

ENCODER = ("clpdd.encoders.encoder", ARCHITECTURES["clpdd_resnet14"])
STRINGS: dict[str, tuple[str, ...]] = {
    "index": (reader_of("digits"),),
    "cache": ENCODER,
    "kernels": (),
    "distill": (*ENCODER, *modules_of("clp", DistillSettings()), *modules_of("lgm", DistillSettings())),
    "evaluate": (*ENCODER, *(PROTOCOLS[name].implementation for name in ("sgd", "closed_form"))),
    "report": (),
}
"""What a stage loads by names in catalogues, with the settings of the copy; these are in its digests, too."""


def below(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def file_of(module: str) -> str:
    path = Path(*module.split(".")[1:])
    return f"{path}/__init__.py" if (Path(__file__).parent.parent / "clpdd" / path).is_dir() else f"{path}.py"


@pytest.mark.slow
@pytest.mark.parametrize("stage", STRINGS)
def test_a_stage_loads_what_its_digest_covers_and_else_what_decides_nothing(finished: Clone, stage: str) -> None:
    loaded = finished.loaded()[stage]
    covered = set(code_files(f"clpdd.stages.{stage}", *STRINGS[stage]))
    assert {"errors.py", f"stages/{stage}.py"} <= covered
    if stage in ("index", "kernels", "report"):  # they call no encoder, but open the project, which could build one
        covered |= set(code_files("clpdd.encoders.loading", *ENCODER))
    unseen = {
        module
        for module in loaded
        if file_of(module) not in covered
        and not decides_nothing(module)
        and not file_of(module).endswith("__init__.py")  # a docstring: a test says so
        and not any(below(module, name) for name in BESIDE)
    }
    assert unseen == set()
