"""The quicker forms against the same in float64 or in the ordinary form, and against themselves run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from clpdd.config.augment import AugmentSettings
from clpdd.encoders.calling import compiled_call, encoder_call
from clpdd.encoders.loading import load_encoder
from clpdd.encoders.lowered import lowered
from clpdd.functional.attention import attention
from clpdd.functional.augment import crop_and_flip, draw
from clpdd.functional.cropping import crop
from clpdd.functional.image_gradient import Views, step
from clpdd.functional.seeding import generator
from clpdd.optimise.images import ImageState
from clpdd.optimise.parameterisation import Parameterisation

__all__ = ["cases"]

CUDA = torch.device("cuda")


def cases() -> Iterator[tuple[str, Callable[[], str]]]:
    """Names, and what to call: it says what was found and fails on what is wrong."""
    for n, heads, width, dtype in (
        (197, 12, 64, torch.bfloat16),
        (261, 2, 32, torch.float16),
        (16, 2, 128, torch.bfloat16),
    ):
        yield f"attention, {n} tokens, {heads} heads of {width}", partial(_attention, n, heads, width, dtype)
    for size, out, area in ((224, 224, (0.08, 1.0)), (32, 20, (0.5, 1.0)), (12, 30, (0.02, 0.3))):
        yield f"crops of {size} px to {out}", partial(_crop, size, out, area)
    yield "pyramid, all levels together", _pyramid
    yield "weights in bfloat16", _lowered
    yield "compiled", _compiled
    yield "kept graphs, two passes, one pass", _engine
    yield "fused Adam refuses foreign strides", _strides


def _far(found: Tensor, wanted: Tensor) -> float:
    far = float((found.detach().double() - wanted.detach().double()).norm() / wanted.detach().double().norm())
    assert far == far, "not a number"
    return far


def _attention(n: int, heads: int, width: int, dtype: torch.dtype) -> str:
    shape, scale = (3, n, 3, heads, width), width**-0.5
    qkv = torch.randn(shape, device=CUDA, generator=generator(n, "qkv", device=CUDA)).to(dtype).requires_grad_()
    outer = torch.randn(3, n, heads, width, device=CUDA, generator=generator(n, "outer", device=CUDA)).to(dtype)
    made = attention(qkv, scale)
    (gradient,) = torch.autograd.grad(made, qkv, outer)
    (again,) = torch.autograd.grad(attention(qkv, scale), qkv, outer)
    exact = qkv.detach().double().requires_grad_()
    q, k, v = exact.permute(2, 0, 3, 1, 4).unbind(0)
    wanted = (torch.softmax(q @ k.mT * scale, -1) @ v).transpose(1, 2)
    (pull,) = torch.autograd.grad(wanted, exact, outer.double())
    there, back = _far(made, wanted), _far(gradient, pull)
    assert torch.equal(gradient, again)
    assert there < 0.004
    assert back < 0.004
    return f"{there:.1e} and {back:.1e} from float64, the same twice"


def _crop(size: int, out: int, area: tuple[float, float]) -> str:
    settings = AugmentSettings(flip=0.5, crop_area=list(area))
    choices = draw(9, settings, generator(0, "crop")).to(CUDA)
    images = torch.rand(9, 3, size, size, device=CUDA).requires_grad_()
    wanted, made = crop_and_flip(images, out, settings, choices), crop(images, choices[:4], out)
    outer = torch.randn_like(made)
    pulls = [torch.autograd.grad(one, images, outer, retain_graph=True)[0] for one in (wanted, made, made)]
    assert torch.equal(pulls[1], pulls[2])
    there, back = _far(made, wanted), _far(pulls[1], pulls[0])
    assert there < 1e-4  # positions of some hundred pixels have an error of 1e-5 pixels in float32
    assert back < 1e-4
    return f"{there:.1e} and {back:.1e} from the product, the same twice"


def _pyramid() -> str:
    def complete(together: bool) -> tuple[Tensor, list[Tensor]]:
        made = Parameterisation(
            5, 60, pyramid=True, decorrelate=True, start="noise", seed=0, device=CUDA, together=together
        )
        while not made.complete:
            made.extend()
        levels = [level.requires_grad_() for level in made.levels]
        pixels = made.decode(levels)
        return pixels, list(torch.autograd.grad(pixels.square().sum(), levels))

    (one, apart), (other, together) = complete(False), complete(True)
    far = max(_far(other, one), *(_far(a, b) for a, b in zip(together, apart, strict=True)))
    assert far < 1e-5
    return f"{far:.1e} from level by level"


def _lowered() -> str:
    told = []
    for name, size in (("vit_base_patch16_224", 224), ("clpdd_resnet14", 64), ("eva02_tiny_patch14_224", 56)):
        encoder = load_encoder(name, image_size=size, untrained=0, device=CUDA)
        images = torch.rand(4, 3, size, size, device=CUDA)
        found, wanted = encoder_call(encoder)(images), encoder_call(encoder, "float32")(images)
        far = _far(found, wanted)
        assert found.dtype == torch.float32
        assert far < 0.05
        told.append(f"{name} {far:.3f}" + ("" if lowered(encoder) is not None else " (autocast)"))
    return "from float32: " + ", ".join(told)


def _compiled() -> str:
    encoder = load_encoder("vit_tiny_patch16_224", untrained=0, device=CUDA, arguments={"depth": 4})
    images = torch.rand(4, 3, 224, 224, device=CUDA).requires_grad_()
    plain, made = encoder_call(encoder)(images), compiled_call(encoder)(images)
    weights = torch.linspace(-1, 1, encoder.dim, device=CUDA).sin()
    pulls = [torch.autograd.grad((one * weights).sum(), images)[0] for one in (plain, made)]
    there, back = _far(made, plain), _far(pulls[1], pulls[0])
    assert there < 0.02
    assert back < 0.05
    return f"{there:.3f} and {back:.3f} from not compiled"


def _engine() -> str:
    encoder = load_encoder("vit_tiny_patch16_224", image_size=64, untrained=0, device=CUDA, arguments={"depth": 4})
    encode = encoder_call(encoder)
    levels = []
    for batch, kept in ((1000, 0), (8, 0), (8, 16), (8, 1000)):
        state = ImageState(
            Parameterisation(10, 64, pyramid=True, decorrelate=True, start="noise", seed=0, device=CUDA, together=True)
        )
        while not state.parameterisation.complete:
            state.extend()
        for number in range(3):
            state.begin(0.01)
            views = Views(10, 4, 64, AugmentSettings(), 0, ("augment", number), CUDA, True)
            outcome = step(encode, state, views, lambda Z: (Z @ Z.T).square().mean(), batch, state.update, kept)
            assert bool(outcome.finite)
        levels.append(torch.cat([level.flatten() for level in state.parameterisation.levels]))
    far = max(_far(other, levels[1]) for other in levels)
    assert far < 0.02
    assert torch.equal(levels[2], levels[3]) or _far(levels[2], levels[3]) < 0.02
    return f"images after 3 steps {far:.1e} apart"


def _strides() -> str:
    parameter = torch.zeros(4, 3, 8, 8, device=CUDA)
    foreign = torch.ones(4, 8, 8, 3, device=CUDA).permute(0, 3, 1, 2)
    try:
        torch._fused_adam_(
            [parameter], [foreign], [torch.zeros_like(parameter)], [torch.zeros_like(parameter)], [],
            [torch.zeros((), device=CUDA)], lr=0.1, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8,
            amsgrad=False, maximize=False,
        )  # fmt: skip
    except RuntimeError as error:
        return str(error).splitlines()[0][:60]
    raise AssertionError("it does not")
