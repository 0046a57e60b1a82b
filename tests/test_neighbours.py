"""Nearest neighbours, mean-per-class accuracy, soft labels of logistic regression, and what a teacher adds."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clpdd.functional.parts import parts_of
from clpdd.probe.linear import Probes
from clpdd.probe.logistic import fit_logistic
from clpdd.probe.neighbours import Neighbours
from clpdd.probe.scoring import score
from clpdd.probe.sgd import Teacher, fit_sgd
from clpdd.probe.views import FreshViews, Stream


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def ranking(z: Tensor, images: Tensor, labels: Tensor, k: int, classes: int) -> list[int]:
    """Classes by votes of the k most similar images, then by their nearest image."""
    similar = [float(z @ image / (z.norm() * image.norm())) for image in images]
    order = sorted(range(len(images)), key=lambda i: -similar[i])
    votes = [sum(int(labels[i]) == c for i in order[:k]) for c in range(classes)]
    nearest = [max([similar[i] for i in order if int(labels[i]) == c], default=-math.inf) for c in range(classes)]
    return sorted(range(classes), key=lambda c: (-votes[c], -nearest[c]))


def test_votes_of_the_most_similar_images_decide_then_the_nearest_image() -> None:
    images = torch.randn(2, 14, 5, generator=seeded(0))
    labels = torch.randint(4, (2, 14), generator=seeded(1))
    Z = torch.randn(60, 5, generator=seeded(2)) * 3
    for k in ([1, 1], [5, 3], [14, 10]):
        scores = Neighbours(images, labels, 4, k).scorer()(Z)
        for p in range(2):
            for z, own in zip(Z, scores[:, p], strict=True):
                assert own.argsort(descending=True).tolist() == ranking(z, images[p], labels[p], k[p], 4)


def test_the_cosine_of_a_joint_encoder_is_the_members_average() -> None:
    images, Z = torch.randn(1, 9, 6, generator=seeded(3)), torch.randn(20, 6, generator=seeded(4))
    own = Neighbours(images, torch.arange(9)[None], 9, [1], parts_of([(2, 1.0), (4, 3.0)])).scorer()(Z)[:, 0]
    wanted = 0.25 * F.cosine_similarity(Z[:, None, :2], images[:, :, :2], dim=2)
    wanted = wanted + 0.75 * F.cosine_similarity(Z[:, None, 2:], images[:, :, 2:], dim=2)
    assert own.argmax(1).tolist() == wanted.argmax(1).tolist()


def test_mean_per_class_counts_every_class_that_has_images_alike() -> None:
    probes = Probes(torch.stack([torch.eye(3), torch.eye(3).roll(1, 1)]), torch.zeros(2, 3))
    Z = torch.eye(3)[[0, 0, 0, 0, 1, 0]]
    labels = torch.tensor([0, 0, 0, 0, 1, 1])  # none of class 2
    found = score(probes, [(Z[:4], labels[:4]), (Z[4:], labels[4:])])
    assert found.mean_per_class == [75.0, 25.0]
    assert found.top1 == pytest.approx([500 / 6, 100 / 6])


def test_logistic_regression_on_certain_probabilities_is_that_on_labels() -> None:
    Z, labels = torch.randn(60, 4, generator=seeded(5)), torch.arange(60) % 3
    hard, _ = fit_logistic((Z, labels), (Z, labels), 3, grid=[0.1])
    soft, _ = fit_logistic((Z, F.one_hot(labels, 3).float()), (Z, labels), 3, grid=[0.1])
    torch.testing.assert_close(soft.weights, hard.weights, rtol=1e-3, atol=1e-4)


def test_a_few_images_are_standardised_as_they_are_told() -> None:
    data = torch.randn(500, 4, generator=seeded(6)) * torch.tensor([1.0, 10, 100, 1]) + 5
    few, labels = data[:6], torch.arange(6) % 3
    deviation, mean = torch.std_mean(data, 0, correction=0)
    told, _ = fit_logistic((few, labels), (few, labels), 3, grid=[0.1], standard=(mean, deviation))
    X = (few - mean) / deviation
    plain = (torch.zeros(4), torch.ones(4))
    same, _ = fit_logistic((X, labels), (X, labels), 3, grid=[0.1], standard=plain)
    torch.testing.assert_close(told.weights[0] * deviation[:, None], same.weights[0], rtol=1e-3, atol=1e-4)


def test_a_taught_probe_is_a_layer_under_half_the_labels_and_half_the_teacher() -> None:
    Z, labels = torch.randn(1, 12, 5, generator=seeded(7)), torch.randint(3, (1, 12), generator=seeded(8))
    taught = (torch.randn(1, 12, 3, generator=seeded(9)) * 2 / 4).softmax(-1)
    stream = Stream(0, 0)
    teacher = Teacher(FreshViews(lambda _: taught), temperature=4.0)
    trained = fit_sgd(FreshViews(lambda _: Z), labels, 3, [stream], epochs=30, learning_rate=0.5, teacher=teacher)
    layer, chosen = nn.Linear(5, 3), stream.generator("initial")
    nn.init.uniform_(layer.weight, -1 / math.sqrt(5), 1 / math.sqrt(5), generator=chosen)
    nn.init.uniform_(layer.bias, -1 / math.sqrt(5), 1 / math.sqrt(5), generator=chosen)
    adam = torch.optim.Adam(layer.parameters(), lr=0.5 * 12 / 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 30, eta_min=0)
    for _ in range(30):
        adam.zero_grad()
        logits = layer(Z[0])
        divergence = F.kl_div((logits / 4).log_softmax(1), taught[0], reduction="batchmean") * 16
        (0.5 * divergence + 0.5 * F.cross_entropy(logits, labels[0])).backward()
        adam.step()
        schedule.step()
    torch.testing.assert_close(trained.weights[0], layer.weight.detach().T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained.bias[0], layer.bias.detach(), rtol=1e-4, atol=1e-5)
