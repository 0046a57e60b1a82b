"""Confusion of few classes as a matrix, of many as the pairs that occur; both say the same."""

from __future__ import annotations

import numpy as np
import torch

import clpdd.probe.scoring as scoring
from clpdd.evaluation.confusion import Confusion, entries, json_form, totals
from clpdd.probe.linear import Probes
from clpdd.probe.scoring import score
from clpdd.report.classes import confusion

PAIRS = ([0, 0, 2], [0, 2, 1], [5, 1, 4])  # true, predicted, count


def test_few_classes_are_a_matrix_and_many_the_pairs_that_occur() -> None:
    assert json_form(*PAIRS, 3) == [[5, 0, 1], [0, 0, 0], [0, 4, 0]]
    many = json_form(*PAIRS, 201)
    assert many == {"true": [0, 0, 2], "predicted": [0, 2, 1], "count": [5, 1, 4]}
    assert list(entries(many)) == list(entries(json_form(*PAIRS, 3))) == [(0, 0, 5), (0, 2, 1), (2, 1, 4)]
    assert totals(many, 201)[:4] == [6, 0, 4, 0]


def test_numbers_are_counted_alike_in_one_vector_and_in_parts() -> None:
    numbers = torch.from_numpy(np.random.default_rng(0).integers(0, 10**6, (40, 50)) ** 2 % 9_000_011)
    places, counts = np.unique(numbers.numpy(), return_counts=True)
    for limit in (2**24, 120):  # one vector; merged again and again
        scoring_limit, scoring._DENSE = scoring._DENSE, limit
        try:
            found = scoring._Counts(9_000_011, torch.device("cpu"))
            for row in numbers:
                found.add(row)
            assert [values.tolist() for values in found.found()] == [places.tolist(), counts.tolist()]
        finally:
            scoring._DENSE = scoring_limit


def test_thousands_of_classes_take_no_square_of_them() -> None:
    classes = 3000
    weights = torch.zeros(1, 2, classes)
    labels = torch.arange(classes)
    bias = torch.zeros(1, classes)
    bias[0, 7] = 1.0  # everything is taken for it
    found = score(Probes(weights, bias), [(torch.zeros(classes, 2), labels)])
    assert found.pairs.tolist() == [labels.tolist(), [7] * classes, [1] * classes]


def test_the_report_draws_the_same_of_both_forms() -> None:
    names = [f"class {i}" for i in range(201)]
    generator = np.random.default_rng(1)
    matrix = generator.integers(0, 9, (201, 201)) * (generator.random((201, 201)) < 0.1)
    matrix[5] = 0  # without test images
    true, predicted = np.nonzero(matrix)
    sparse = json_form(true.tolist(), predicted.tolist(), matrix[true, predicted].tolist(), 201)
    key = {"method": "clp", "encoder": "e", "protocol": "sgd", "views": "clean"}
    row = {"method": "clp", "distil_encoder": "e", "eval_encoder": "e", "protocol": "sgd", "views": "clean"}

    def drawn(form: Confusion) -> object:
        return confusion({"rows": [row | {"confusion": form}]}, key, names, 20)

    found = drawn(sparse)
    assert found == drawn(matrix.tolist())
    assert isinstance(found, dict)
    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    expected = np.concatenate([shares[:20, :20], shares[:20, 20:].sum(1, keepdims=True)], 1)
    np.testing.assert_allclose(found["rows"], expected, atol=1e-6)
    wrong = shares - np.diag(np.diag(shares))
    assert found["mistakes"][0]["share"] == round(float(wrong.max()), 6)
