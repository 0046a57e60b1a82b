"""A classifier as ONNX: the same probabilities from another runtime, and nothing written where they are not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clpdd.cli.main import main
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import load_encoder
from clpdd.errors import ArtifactError, NumericalError, SettingsError
from clpdd.probe import onnx as handover
from clpdd.probe.classifier import Classifier
from clpdd.probe.onnx import write_onnx

from .versions import need_exporter

NAMES = ["Blüte", "coffee cup", "c"]


def classifier_of(encoder: Encoder) -> Classifier:
    """One that is unsure, so that a wrong feature shows in its probabilities."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(3, encoder.dim, generator=generator)
    return Classifier(weight, torch.tensor([0.1, 0.0, -0.1]), NAMES, encoder.describe())


@pytest.fixture
def small() -> Encoder:
    return load_encoder("clpdd_resnet14", image_size=32, untrained=0, device="cpu")


def run(path: Path, **given: torch.Tensor) -> tuple[np.ndarray[Any, Any], dict[str, str]]:
    """What onnxruntime makes of the only input, and the metadata."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == list(given)
    found = session.run(["probabilities"], {name: value.numpy() for name, value in given.items()})[0]
    return found, session.get_modelmeta().custom_metadata_map


def test_the_probe_alone_takes_any_number_of_features(small: Encoder, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    need_exporter()
    classifier = classifier_of(small)
    write_onnx(classifier, tmp_path / "head.onnx")
    for count in (1, 5):
        features = torch.randn(count, small.dim)
        found, facts = run(tmp_path / "head.onnx", features=features)
        assert np.allclose(found, classifier(features).numpy(), atol=1e-6)
    assert json.loads(facts["class_names"]) == NAMES
    assert json.loads(facts["encoder"])["digest"] == small.digest


def test_with_the_encoder_images_become_probabilities_and_what_differs_is_not_written(
    small: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    need_exporter()
    classifier, path = classifier_of(small), tmp_path / "whole.onnx"
    write_onnx(classifier, path, small)
    images = torch.rand(4, 3, 32, 32)
    found, facts = run(path, images=images)
    wanted = classifier(small(images)).numpy()
    assert np.abs(wanted - wanted.mean(0)).max() > 1e-3  # images matter
    assert np.allclose(found, wanted, atol=1e-5)
    assert json.loads(facts["encoder"])["resize"] == small.resized
    whole = path.read_bytes()
    monkeypatch.setattr(handover, "_converted", lambda *_: whole)  # of other weights than these
    other = Classifier(-classifier.weight, classifier.bias, NAMES, classifier.encoder)
    with pytest.raises(NumericalError, match="nothing was written"):
        write_onnx(other, tmp_path / "other.onnx", small)
    assert [entry.name for entry in tmp_path.iterdir()] == ["whole.onnx"]


def test_another_encoder_than_the_classifiers_is_refused(
    small: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "require_onnx", lambda: None)
    other = load_encoder("clpdd_resnet14", image_size=48, untrained=0, device="cpu")
    with pytest.raises(ArtifactError, match=r"differs from it in .*size"):
        write_onnx(classifier_of(small), tmp_path / "whole.onnx", other)


def test_without_its_packages_the_command_says_which_before_it_reads_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert main(["onnx", str(tmp_path / "none.safetensors"), "--out", str(tmp_path / "x.onnx")]) == 2
    told = capsys.readouterr().err
    assert "not installed (onnxruntime): pip install onnxruntime" in told
    assert "clpdd[onnx]" in told
    assert list(tmp_path.iterdir()) == []


def test_an_exporter_that_fails_is_told_with_what_could_not_be_written(
    small: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no word for it\nand more")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(SettingsError, match=r"the encoder cannot be written as ONNX \(no word for it\): "):
        write_onnx(classifier_of(small), tmp_path / "whole.onnx", small)
    with pytest.raises(SettingsError, match=r"the probe cannot be written as ONNX \(no word for it\): .*a newer torch"):
        write_onnx(classifier_of(small), tmp_path / "head.onnx")
    assert not list(tmp_path.iterdir())
