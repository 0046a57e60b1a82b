"""Views of distilled images: the same whenever they are asked for, and every image in its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from clpdd.config.augment import AugmentSettings
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import load_encoder
from clpdd.probe.scoring import score
from clpdd.probe.sgd import fit_sgd
from clpdd.probe.views import FreshViews, Stream, ViewBank, encode_clean, encode_views

CROPS = AugmentSettings(noise=0.0)

STREAMS = [Stream(0, index, draw) for draw in range(2) for index in range(2)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    torch.manual_seed(0)
    file: Path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(timm.create_model("clpdd_resnet14", num_classes=0).state_dict(), file)
    return load_encoder("clpdd_resnet14", weights=file, device="cpu")


def pictures(n: int, size: int = 16) -> Tensor:
    return torch.randint(256, (n, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_a_view_is_the_same_whatever_else_is_encoded_with_it(encoder: Encoder) -> None:
    images = [pictures(3)] * 2
    streams = STREAMS[:2]
    bank = encode_views(encoder, images, streams, range(4), CROPS, batch=5)
    assert bank.shape == (2, 4, 3, encoder.dim)
    fresh = torch.stack(
        [encode_views(encoder, images, streams, range(v, v + 1), CROPS, batch=64)[:, 0] for v in range(4)], 1
    )
    torch.testing.assert_close(bank, fresh, rtol=1e-4, atol=1e-4)
    alone = encode_views(encoder, images[:1], streams[1:], range(4), CROPS, batch=1)
    torch.testing.assert_close(bank[1:], alone, rtol=1e-4, atol=1e-4)
    distinct = bank.flatten(0, 2)
    assert torch.pdist(distinct).min() > 1e-4


def test_clean_features_are_those_of_the_encoder(encoder: Encoder) -> None:
    images = pictures(4).view(2, 2, 3, 16, 16)
    direct = encoder(images.flatten(0, 1).float() / 255).view(2, 2, -1)
    torch.testing.assert_close(encode_clean(encoder, images, batch=3), direct, rtol=1e-4, atol=1e-4)


def test_a_bank_takes_every_image_from_its_own_place() -> None:
    bank = torch.zeros(4, 7, 5, 3)
    bank[..., 0] = torch.arange(4)[:, None, None]
    bank[..., 1] = torch.arange(7)[None, :, None]
    bank[..., 2] = torch.arange(5)
    views = ViewBank(bank, STREAMS)
    picked = torch.stack([views(epoch) for epoch in range(200)])
    assert torch.equal(picked[..., 0], torch.arange(4.0)[None, :, None].expand(200, 4, 5))
    assert torch.equal(picked[..., 2], torch.arange(5.0).expand(200, 4, 5))
    counts = picked[..., 1].long().flatten().bincount(minlength=7) / picked[..., 1].numel()
    assert torch.allclose(counts, torch.full((7,), 1 / 7), atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_of_an_epoch_are_those_of_all_its_images_whatever_was_asked_before(dtype: torch.dtype) -> None:
    bank = torch.randn(4, 7, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = torch.stack([torch.randperm(5, generator=s.generator("rows")) for s in STREAMS])
    views, made = ViewBank(bank, STREAMS), []
    for epoch in (40, 3, 40):
        whole = ViewBank(bank, STREAMS)(epoch)
        assert whole.dtype == torch.float32
        assert torch.equal(views(epoch, rows), torch.stack([Z[r] for Z, r in zip(whole, rows, strict=True)]))
        made.append(whole)
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[1])


def test_fresh_views_are_made_once_an_epoch() -> None:
    asked = []

    def make(epoch: int) -> Tensor:
        asked.append(epoch)
        return torch.arange(4 * 5 * 3.0).view(4, 5, 3) + epoch

    fresh = FreshViews(make)
    rows = torch.tensor([[4, 0]]).expand(4, 2)
    for epoch in (0, 0, 1):
        assert torch.equal(fresh(epoch, rows), fresh(epoch)[:, [4, 0]])
    assert asked == [0, 1]


def test_a_bank_of_views_and_fresh_views_agree_on_easy_data(encoder: Encoder) -> None:
    colours = torch.tensor([[230, 30, 30], [30, 230, 30], [30, 30, 230]], dtype=torch.uint8)
    images = colours[:, :, None, None].expand(3, 3, 16, 16)
    noise = torch.randint(-25, 26, (60, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 3
    real = (images[labels].int() + noise).clamp(0, 255).to(torch.uint8)
    test = encode_clean(encoder, real, 64), labels
    streams = [Stream(0, 0), Stream(0, 1)]
    sets, targets = [images] * 2, torch.arange(3).expand(2, 3)
    bank = encode_views(encoder, sets, streams, range(8), CROPS, 64)

    def fresh(epoch: int) -> Tensor:
        return encode_views(encoder, sets, streams, range(epoch, epoch + 1), CROPS, 64)[:, 0]

    for features in (FreshViews(fresh), ViewBank(bank, streams)):
        probes = fit_sgd(features, targets, 3, streams, epochs=40, learning_rate=0.3)
        assert min(score(probes, [test]).top1) > 95
