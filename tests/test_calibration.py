"""One temperature turns logits into probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from clpdd.probe.calibration import fit_temperature


@pytest.mark.parametrize("temperature", [0.02, 0.5, 1.0, 30.0])
def test_the_temperature_that_labels_were_drawn_at_is_found(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((logits * 2).softmax(1), 1, generator=generator).flatten()
    assert fit_temperature(2 * temperature * logits, labels) == pytest.approx(temperature, rel=0.03)
    assert fit_temperature(2 * temperature * logits + 7, labels) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("count", [1, 8, 98])
def test_n_right_of_n_speak_for_n_plus_one_of_n_plus_two(count: int) -> None:
    labels = torch.arange(count) % 2
    logits = 3.0 * torch.nn.functional.one_hot(labels, 2)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(3 / math.log(count + 1))
    assert float((logits / temperature).softmax(1).amax()) == pytest.approx((count + 1) / (count + 2))


def test_probabilities_are_targets_as_well_as_labels() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]] * 5000)
    soft = torch.tensor([[0.75, 0.25], [0.25, 0.75]] * 5000)
    assert fit_temperature(logits, soft) == pytest.approx(2 / math.log(3), rel=1e-3)


def test_logits_that_tell_nothing_are_left_alone() -> None:
    assert fit_temperature(torch.full((6, 3), 2.5), torch.arange(6) % 3) == 1
    assert fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == 1


def test_logits_that_are_wrong_are_never_turned_round() -> None:
    labels = torch.arange(10) % 2
    temperature = fit_temperature(-torch.nn.functional.one_hot(labels, 2).float(), labels)
    assert temperature > 1000
