"""The chunked step: the same update whatever the chunks, wherever the images lie, with torch and timm alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from torch import Tensor

from clpdd.config.augment import AugmentSettings
from clpdd.encoders.calling import batch_that_fits, encoder_call, saved_bytes
from clpdd.encoders.encoder import Encoder
from clpdd.functional.image_gradient import Views, features, step
from clpdd.optimise.images import ImageState
from clpdd.optimise.parameterisation import Parameterisation

from .pixels import Pixels

CPU = torch.device("cpu")
ALL = AugmentSettings(flip=0.5, crop=True, noise=0.5)
OFF = AugmentSettings(flip=0.0, crop=False)


def images_state(start: str = "noise", n: int = 11, size: int = 20) -> ImageState:
    parameterisation = Parameterisation(n, size, pyramid=True, decorrelate=True, start=start, seed=0, device=CPU)
    return ImageState(parameterisation)


def encode(pixels: Tensor) -> Tensor:
    """A smooth function of every image by itself."""
    weights = torch.linspace(-1, 1, pixels[0].numel() * 6).sin().view(-1, 6)
    return torch.tanh(pixels.flatten(1) @ weights)


def loss(Z: Tensor) -> Tensor:
    """Every row meets every other, as in a kernel."""
    return (Z @ Z.T).exp().mean()


def after(batch: int, count: int = 3, steps: int = 5) -> ImageState:
    """The state after some steps, a pyramid level added on the way."""
    state = images_state()
    for number in range(steps):
        if number == 2:
            state.extend()
        state.begin(0.05)
        views = Views(len(state), count, 16, ALL, 0, ("augment", number), CPU)
        outcome = step(encode, state, views, loss, batch, state.update)
        assert bool(outcome.finite)
    return state


@pytest.mark.parametrize("batch", [1, 2, 4, 9, 32])
def test_chunks_change_nothing_but_rounding(batch: int) -> None:
    whole, parts = after(10_000), after(batch)
    for one, other in zip(whole.parameterisation.levels, parts.parameterisation.levels, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_an_update_is_that_of_torch() -> None:
    state = images_state()
    state.extend()
    twins = [level.clone().requires_grad_() for level in state.parameterisation.levels]
    adam = torch.optim.Adam(twins, lr=0.05)
    for number in range(4):
        state.begin(0.05)
        views = Views(len(state), 2, 16, ALL, 0, ("augment", number), CPU)
        step(encode, state, views, loss, 7, state.update)
        adam.zero_grad()
        loss(encode(views.of(state.parameterisation.decode(twins), range(len(state))))).backward()
        adam.step()
    for level, twin in zip(state.parameterisation.levels, twins, strict=True):
        torch.testing.assert_close(level, twin.detach(), rtol=1e-3, atol=1e-5)


def test_views_are_a_function_of_view_and_image_alone() -> None:
    pixels = torch.rand(40, 3, 12, 12)
    views = Views(40, 4, 12, ALL, 3, ("augment", 5), CPU)
    together = views.of(pixels, range(40)).view(4, 40, 3, 12, 12)
    for rows, some in ((range(13, 31), range(1, 3)), (range(39, 40), range(4))):
        apart = views.of(pixels[rows.start : rows.stop], rows, some).view(len(some), len(rows), 3, 12, 12)
        assert torch.equal(apart, together[some.start : some.stop, rows.start : rows.stop])
    assert not torch.equal(together[0], Views(40, 4, 12, ALL, 3, ("augment", 6), CPU).of(pixels, range(40), range(1)))


def test_features_come_view_by_view_in_the_order_of_the_images() -> None:
    pixels = Pixels(torch.rand(7, 3, 16, 16))
    views = Views(7, 3, 16, ALL, 0, ("augment", 0), CPU)
    expected = encode(views.of(pixels.images, range(7)))
    torch.testing.assert_close(features(encode, pixels, views, 4), expected, rtol=0, atol=1e-3)


def test_a_gradient_that_is_not_finite_is_noticed_in_one_pass_and_in_two() -> None:
    class Cracked(torch.autograd.Function):
        @staticmethod
        def forward(context: object, Z: Tensor) -> Tensor:
            return Z.clone()

        @staticmethod
        def backward(context: object, *outer: Tensor) -> Tensor:
            return outer[0] * torch.nan

    for batch in (2, 1000):
        state = images_state()
        state.begin(0.1)
        views = Views(len(state), 1, 16, OFF, 0, ("augment", 0), CPU)
        outcome = step(lambda pixels: Cracked.apply(encode(pixels)), state, views, loss, batch, state.update)
        assert bool(torch.isfinite(outcome.loss))
        assert not bool(outcome.finite)


def test_pictures_are_decoded_in_parts_as_in_one() -> None:
    state = images_state(n=70)
    whole = (state.parameterisation.decode().clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(state.pictures(), whole)
    assert torch.equal(state.pictures(65), whole[:65])


def test_a_state_comes_back_as_it_was() -> None:
    state, other = after(8), images_state()
    other.restore({name: tensor.clone() for name, tensor in state.tensors().items()}, state.updates)
    for one in (state, other):
        one.begin(0.05)
        views = Views(len(one), 2, 16, ALL, 0, ("augment", 9), CPU)
        step(encode, one, views, loss, 8, one.update)
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


# -- the encoder's call ------------------------------------------------------------------------------------------------


def test_bfloat16_is_near_float32_and_gives_float32(encoder: Encoder) -> None:
    pixels = torch.rand(4, 3, 64, 64)
    exact, rough = (encoder_call(encoder, precision)(pixels) for precision in ("float32", "bfloat16"))
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert torch.nn.functional.cosine_similarity(rough, exact).min() > 0.99
    assert torch.equal(encoder_call(encoder, "auto")(pixels), exact)  # on a CPU


def test_the_batch_that_fits_follows_what_a_pass_keeps() -> None:
    def built(name: str, size: int) -> Encoder:
        return Encoder(name, timm.create_model(name, num_classes=0, img_size=size), size)

    small, large = built("test_vit", 32), built("test_vit", 320)
    kept = [saved_bytes(encoder_call(e), torch.rand(1, 3, e.size, e.size)) for e in (small, large)]
    assert kept[0] < kept[1]
    assert batch_that_fits(small) > batch_that_fits(large) >= 1


def test_the_core_needs_torch_and_timm_alone() -> None:
    """Speed is measured on machines that have nothing else."""
    code = (
        "import sys\n"
        "for name in ('pydantic', 'zarr', 'pyarrow', 'yaml', 'jinja2', 'sklearn', 'tqdm', 'prefect', 'dvc'):\n"
        "    sys.modules[name] = None\n"
        "from clpdd.functional import augment, image_gradient, matching, moments, objectives, ridge\n"
        "from clpdd.encoders import calling, loading\n"
        "from clpdd.optimise import images, parameterisation, real_features\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
