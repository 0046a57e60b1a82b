"""The sgd protocol: probes of all seeds trained at once against one after the other in the ordinary way."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clpdd.probe.sgd import fit_sgd
from clpdd.probe.views import Stream, ViewBank

from .clock import seconds
from .table import Section

__all__ = ["evaluation"]

_SEEDS, _VIEWS, _DIM, _RATE = 5, 20, 768, 1e-3


def evaluation(device: torch.device, classes: tuple[int, ...], epochs: int) -> Section:
    """Seconds of both forms at several numbers of classes, one image each, and how far their probes are apart."""
    columns = ["classes", "one after the other, s", "at once, s", "times quicker", "largest difference of a logit"]
    section = Section(f"Evaluation: {_SEEDS} probes, {_DIM} features, {epochs} epochs, views encoded before", columns)
    streams = [Stream(0, index) for index in range(_SEEDS)]
    for count in classes:
        bank = torch.randn(_SEEDS, _VIEWS, count, _DIM, generator=torch.Generator().manual_seed(0)).to(device)
        labels = torch.arange(count, device=device)

        def together(bank: Tensor = bank, labels: Tensor = labels, count: int = count) -> tuple[Tensor, Tensor]:
            views, many = ViewBank(bank, streams), labels.expand(_SEEDS, -1)
            made = fit_sgd(views, many, count, streams, epochs=epochs, learning_rate=_RATE)
            return made.weights, made.bias

        def apart(bank: Tensor = bank, labels: Tensor = labels, count: int = count) -> tuple[Tensor, Tensor]:
            layers = [_train(bank[i], labels, count, s, epochs) for i, s in enumerate(streams)]
            return torch.stack([one.weight.detach().T for one in layers]), torch.stack(
                [one.bias.detach() for one in layers]
            )

        (W, b), (V, c) = together(), apart()
        probe = bank[:, 0, : min(count, 50)]
        gap = ((probe @ W + b[:, None]) - (probe @ V + c[:, None])).abs().max().item()
        slow, quick = seconds([apart, together], device, 1)
        section.add(count, slow, quick, slow / quick, gap)
    return section


def _train(bank: Tensor, labels: Tensor, classes: int, stream: Stream, epochs: int) -> nn.Linear:
    """The protocol as it is usually written: a layer, an optimiser, a scheduler, a loop over batches."""
    views, count, dim = bank.shape
    layer = nn.Linear(dim, classes, device=bank.device)
    start, bound = stream.generator("initial"), dim**-0.5
    with torch.no_grad():
        layer.weight.copy_(torch.empty(classes, dim).uniform_(-bound, bound, generator=start))
        layer.bias.copy_(torch.empty(classes).uniform_(-bound, bound, generator=start))
    size = min(100, count)
    adam = torch.optim.Adam(layer.parameters(), lr=_RATE * size / 256)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs)
    for epoch in range(epochs):
        chosen = torch.randint(views, (count,), generator=stream.generator("pick", epoch)).to(bank.device)
        order = torch.arange(count)
        if count > size:
            order = torch.randperm(count, generator=stream.generator("order", epoch))
        for rows in order.to(bank.device).split(size):
            adam.zero_grad()
            F.cross_entropy(layer(bank[chosen[rows], rows]), labels[rows]).backward()
            adam.step()
        schedule.step()
    return layer
