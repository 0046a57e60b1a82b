"""Probes against torch's own layer, optimiser and scheduler, and against one another."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from clpdd.errors import NumericalError, SingularError
from clpdd.functional.ridge import centred_one_hot, solve
from clpdd.functional.targets import as_targets, centred_targets
from clpdd.probe import closed_form
from clpdd.probe.closed_form import fit_ridge, regress
from clpdd.probe.linear import Probes
from clpdd.probe.logistic import fit_logistic
from clpdd.probe.scoring import score
from clpdd.probe.sgd import fit_sgd
from clpdd.probe.views import FreshViews, Stream, ViewBank

from .allocations import Made

STREAMS = [Stream(0, index, draw) for draw in range(2) for index in range(2)]


def clusters(n: int, d: int, classes: int, seed: int = 0, distance: float = 3.0) -> tuple[Tensor, Tensor]:
    """Features ``(n, d)`` around one centre per class, far apart for large ``distance``."""
    generator = torch.Generator().manual_seed(seed)
    centres = distance * torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return centres[labels] + torch.randn(n, d, generator=generator), labels


def problem(n: int = 12, d: int = 9, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Features ``(P, n, d)`` and labels ``(P, n)`` for ``STREAMS``, different for each of them."""
    generator = torch.Generator().manual_seed(1)
    Z = torch.randn(len(STREAMS), n, d, generator=generator)
    return Z, torch.randint(classes, (len(STREAMS), n), generator=generator)


# -- the sgd protocol --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("batch", [5, 100])  # 5 leaves a partial batch of 2
def test_sgd_equals_a_linear_layer_under_adam_and_cosine_annealing(batch: int, soft: bool) -> None:
    Z, labels = problem()
    if soft:
        labels = torch.rand(*labels.shape, 4, generator=torch.Generator().manual_seed(3)).softmax(-1)
    trained = fit_sgd(FreshViews(lambda _: Z), labels, 4, STREAMS, epochs=40, learning_rate=0.5, batch=batch)
    for p, stream in enumerate(STREAMS):
        layer = reference_layer(stream, 9, 4)
        adam = torch.optim.Adam(layer.parameters(), lr=0.5 * min(batch, 12) / 256)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 40, eta_min=0)
        for epoch in range(40):
            order = torch.arange(12)
            if batch < 12:
                order = torch.randperm(12, generator=stream.generator("order", epoch))
            for rows in order.split(batch):
                adam.zero_grad()
                nn.functional.cross_entropy(layer(Z[p, rows]), labels[p, rows]).backward()
                adam.step()
            schedule.step()
        torch.testing.assert_close(trained.weights[p], layer.weight.detach().T, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(trained.bias[p], layer.bias.detach(), rtol=1e-4, atol=1e-5)


def reference_layer(stream: Stream, d: int, classes: int) -> nn.Linear:
    """``torch.nn.Linear`` with its default initialisation, out of the stream's generator."""
    layer, chosen = nn.Linear(d, classes), stream.generator("initial")
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=chosen)
    nn.init.uniform_(layer.bias, -1 / math.sqrt(d), 1 / math.sqrt(d), generator=chosen)
    return layer


@pytest.mark.parametrize("batch", [5, 100])
def test_probes_trained_at_once_equal_probes_trained_one_after_the_other(batch: int) -> None:
    Z, labels = problem()
    bank = Z[:, None] + torch.randn(len(Z), 3, *Z.shape[1:], generator=torch.Generator().manual_seed(2)) / 10

    def fit(which: slice) -> Probes:
        own, streams = bank[which], STREAMS[which]
        return fit_sgd(ViewBank(own, streams), labels[which], 4, streams, epochs=30, learning_rate=0.1, batch=batch)

    together = fit(slice(None))
    alone = Probes.join([fit(slice(p, p + 1)) for p in range(len(STREAMS))])
    torch.testing.assert_close(together.weights, alone.weights, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.bias, alone.bias, rtol=1e-5, atol=1e-6)


def test_sgd_separates_what_is_separable() -> None:
    Z, labels = clusters(30, 20, 3)
    test = clusters(300, 20, 3, seed=1)
    probes = fit_sgd(
        FreshViews(lambda _: Z.expand(4, -1, -1)), labels.expand(4, -1), 3, STREAMS, epochs=200, learning_rate=0.1
    )
    found = score(probes, [test])
    assert found.top1 == [100.0] * 4
    assert found.top5 == [100.0] * 4


def test_the_same_stream_gives_the_same_bits_and_another_one_does_not() -> None:
    Z, labels = problem()
    fits = [fit_sgd(FreshViews(lambda _: Z), labels, 4, STREAMS, epochs=5, learning_rate=0.1).weights for _ in range(2)]
    assert torch.equal(*fits)
    same = fit_sgd(
        FreshViews(lambda _: Z[:1].expand(4, -1, -1)), labels[:1].expand(4, -1), 4, STREAMS, epochs=5, learning_rate=0.1
    )
    assert all(not torch.equal(same.weights[0], other) for other in same.weights[1:])


def test_weights_that_are_not_finite_are_refused() -> None:
    Z, labels = problem()
    with pytest.raises(NumericalError, match=r"evaluate\.learning_rate"):
        fit_sgd(FreshViews(lambda _: Z * math.nan), labels, 4, STREAMS, epochs=2, learning_rate=0.1)


# -- closed form and full data -----------------------------------------------------------------------------------------


def test_ridge_classifies_what_is_separable_and_its_bias_stands_for_the_mean() -> None:
    Z, labels = clusters(30, 20, 3)
    mean = Z.mean(0)
    probes = fit_ridge(Z[None] + 50, labels[None], 3, mean + 50, 0.1)
    assert score(probes, [(Z + 50, labels)]).top1 == [100.0]
    unmoved = fit_ridge(Z[None], labels[None], 3, mean, 0.1)
    torch.testing.assert_close(probes.weights, unmoved.weights, rtol=1e-3, atol=1e-4)


def test_ridge_on_many_rows_in_half_precision_equals_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "_ROWS", 13)  # 8 blocks, the last of 9 rows
    Z, labels = clusters(100, 20, 3, distance=0.5)
    half, mean = Z.half(), Z.mean(0)
    probes = fit_ridge(half[None], labels[None], 3, mean, 0.1)
    W = solve(half.double() - mean, centred_one_hot(labels, 3).double(), 0.1)
    torch.testing.assert_close(probes.weights[0].double(), W, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [15, 100])  # fewer rows than features, and more
def test_regression_of_any_targets_equals_the_solver_at_every_ridge(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(closed_form, "_ROWS", 13)
    Z, _ = clusters(count, 20, 3, distance=0.5)
    Y, mean = torch.randn(count, 4, generator=torch.Generator().manual_seed(5)), Z.mean(0) + 0.1
    asked: list[int] = []

    def targets(rows: slice) -> Tensor:
        asked.extend(range(rows.start, rows.stop))
        return Y[rows]

    found = regress(Z.half(), targets, 4, mean, (1.0, 1e-2))
    assert asked == list(range(count))
    assert list(found) == [1.0, 1e-2]
    for ridge, weights in found.items():
        W = solve(Z.half().double() - mean, Y.double(), ridge)
        torch.testing.assert_close(weights.double(), W, rtol=1e-5, atol=1e-6)


def test_regression_on_many_views_of_few_images_holds_at_weak_ridges() -> None:
    """20,000 rows within ten directions of 64, but for the last digit: in float32 the Gram matrix is singular."""
    generator = torch.Generator().manual_seed(0)
    places = torch.arange(20000) % 10
    Z = torch.randn(10, 64, generator=generator)[places] + 1e-5 * torch.randn(20000, 64, generator=generator)
    with pytest.raises(SingularError):
        solve(Z, torch.eye(10)[places], 1e-3)
    found = regress(Z, lambda rows: torch.eye(10)[places[rows]], 10, torch.zeros(64), (1e-3,))
    X, Y = Z.double(), torch.eye(10, dtype=torch.float64)[places]
    strength = 1e-3 * X.square().sum() / 20000
    W = torch.linalg.solve(X.T @ X + strength * torch.eye(64), X.T @ Y)
    torch.testing.assert_close(found[1e-3].double(), W, rtol=1e-4, atol=1e-6)


def test_a_ridge_without_a_solution_is_left_out_and_only_if_all_are_is_that_an_error() -> None:
    Z = torch.ones(30, 3)
    assert list(regress(Z, lambda rows: Z[rows], 3, torch.zeros(3), (1e-1, 0.0))) == [1e-1]
    with pytest.raises(SingularError, match="3 x 3 kernel is singular"):
        regress(Z, lambda rows: Z[rows], 3, torch.ones(3), (10.0, 1e-1))
    with pytest.raises(NumericalError, match="NaN or infinite"):
        regress(Z * math.nan, lambda rows: Z[rows], 3, torch.zeros(3), (10.0, 1e-1))


def test_logistic_regression_equals_scikit_learn() -> None:
    Z, labels = clusters(90, 6, 3, distance=0.5)
    Z = Z * torch.tensor([1.0, 10, 100, 1, 0.1, 1]) + 3
    probes, strength = fit_logistic((Z, labels), (Z, labels), 3, grid=[0.01], iterations=500)
    assert strength == 0.01
    X = ((Z - Z.mean(0)) / Z.std(0, correction=0)).numpy()
    reference = LogisticRegression(C=1 / (0.01 * len(Z)), tol=1e-8, max_iter=5000).fit(X, labels.numpy())
    ours = (Z @ probes.weights[0] + probes.bias[0]).softmax(-1)
    theirs = torch.from_numpy(reference.predict_proba(X)).float()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_logistic_regression_keeps_the_strength_that_is_best_on_validation() -> None:
    train, validation = clusters(40, 30, 4, distance=0.3), clusters(400, 30, 4, seed=1, distance=0.3)
    grid = [10.0, 1e-1, 1e-6]
    each = {g: score(fit_logistic(train, validation, 4, grid=[g])[0], [validation]).top1[0] for g in grid}
    chosen, strength = fit_logistic(train, validation, 4, grid=grid)
    assert score(chosen, [validation]).top1[0] >= max(each.values()) - 1
    assert each[strength] >= max(each.values()) - 1


def test_very_many_weights_are_stopped_early_on_a_cpu_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train = clusters(40, 5, 4)
    whole, _ = fit_logistic(train, train, 4)
    assert caplog.text == ""
    monkeypatch.setattr("clpdd.probe.logistic._MANY", 19)  # 5 x 4 weights
    monkeypatch.setattr("clpdd.probe.logistic._CPU_WORK", 0)
    gradients = list[int]()
    with caplog.at_level("WARNING", "clpdd"):
        short, strength = fit_logistic(train, train, 4, tick=lambda: gradients.append(1))
    assert "fitted at one strength and stopped after 3 iterations" in caplog.text
    assert strength == 1e-3
    assert len(gradients) <= 5  # of a start and three iterations, not of each of five strengths
    assert not torch.equal(short.weights, whole.weights)
    assert score(short, [train]).top1[0] > 50  # of four classes


@pytest.mark.parametrize("classes", [3, 40])
def test_a_ridge_probe_does_not_depend_on_the_rows_at_once(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    Z, labels = torch.randn(1, 90, 6, generator=generator), torch.randint(classes, (1, 90), generator=generator)
    whole = fit_ridge(Z, labels, classes, torch.zeros(6), 0.1)
    monkeypatch.setattr("clpdd.probe.closed_form._TARGETS", 7 * classes)
    torch.testing.assert_close(fit_ridge(Z, labels, classes, torch.zeros(6), 0.1).weights, whole.weights)


def test_a_constant_feature_has_no_weight() -> None:
    Z, labels = clusters(40, 5, 2)
    Z[:, 2] = 7
    probes, _ = fit_logistic((Z, labels), (Z, labels), 2)
    assert not probes.weights[0, 2].any()
    assert score(probes, [(Z, labels)]).top1 == [100.0]


def test_targets_of_classes_are_made_once_and_equal_those_less_their_mean_to_the_bit() -> None:
    labels = torch.arange(30) % 7
    with Made(30 * 7) as made:
        targets = centred_targets(labels, 7)
    assert torch.equal(targets, as_targets(labels, 7) - 1.0 / 7)
    assert made.bytes == [4 * 30 * 7]
    soft = torch.rand(30, 7).softmax(1)
    assert torch.equal(centred_targets(soft, 7), soft - 1.0 / 7)


# -- scoring -----------------------------------------------------------------------------------------------------------


def test_logits_are_held_once() -> None:
    generator = torch.Generator().manual_seed(3)
    probes = Probes(torch.randn(3, 6, 80, generator=generator), torch.randn(3, 80, generator=generator))
    Z, scorer = torch.randn(50, 6, generator=generator), probes.scorer()
    with Made(50 * 3 * 80) as made:
        logits = scorer(Z)
    assert made.bytes == [4 * logits.numel()]


def test_score_equals_a_loop_over_images() -> None:
    generator = torch.Generator().manual_seed(3)
    probes = Probes(torch.randn(3, 6, 8, generator=generator), torch.randn(3, 8, generator=generator))
    Z, labels = torch.randn(50, 6, generator=generator), torch.randint(8, (50,), generator=generator)
    found = score(probes, [(Z[:20], labels[:20]), (Z[20:], labels[20:])])
    confusion = torch.zeros(8, 8, dtype=torch.int64)
    for p in range(3):
        ranked = [(z @ probes.weights[p] + probes.bias[p]).argsort(descending=True).tolist() for z in Z]
        for order, y in zip(ranked, labels.tolist(), strict=True):
            confusion[y, order[0]] += 1
        assert found.top1[p] == 100 * sum(o[0] == y for o, y in zip(ranked, labels.tolist(), strict=True)) / 50
        assert found.top5[p] == 100 * sum(y in o[:5] for o, y in zip(ranked, labels.tolist(), strict=True)) / 50
    assert torch.equal(found.confusion, confusion)
    assert torch.equal(found.confusion.sum(1), 3 * labels.bincount(minlength=8))


@pytest.mark.parametrize("classes", [2, 5])
def test_top5_of_up_to_five_classes_is_always_right(classes: int) -> None:
    probes = Probes(torch.zeros(1, 3, classes), torch.zeros(1, classes))
    assert score(probes, [(torch.ones(7, 3), torch.arange(7) % classes)]).top5 == [100.0]


def test_closed_form_solves_for_the_probabilities_it_is_given() -> None:
    Z, labels = problem(n=30)
    soft = torch.rand(len(Z), 30, 4, generator=torch.Generator().manual_seed(3)).softmax(-1)
    mean = Z.mean((0, 1))
    probes = fit_ridge(Z, soft, 4, mean, 0.1)
    for own, y, weights in zip(Z, soft, probes.weights, strict=True):
        centred = (own - mean).double()
        penalty = 0.1 * centred.square().sum() / 30 * torch.eye(9)
        expected = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ (y.double() - 0.25))
        torch.testing.assert_close(weights, expected.float(), rtol=1e-4, atol=1e-5)
    hard = fit_ridge(Z, labels, 4, mean, 0.1).weights
    assert torch.equal(fit_ridge(Z, torch.nn.functional.one_hot(labels, 4).float(), 4, mean, 0.1).weights, hard)
