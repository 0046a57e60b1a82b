"""How lgm.safetensors was made: the public implementation of LGM, run on small random tensors.

    git clone https://github.com/GeorgeCazenavette/linear-gradient-matching PUBLIC
    python tests/reference/lgm.py PUBLIC

Nothing of that repository is kept here but the numbers it computes. Its packages for logging, data and big encoders are
stood in for by empty modules, its calls of ``.cuda()`` stay on the CPU (where its autocast is off: float32), and the
encoder is a linear layer and a tanh, whose weights are among the tensors.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

CLASSES, VIEWS, SIZE, DIM = 4, 3, 12, 16


def public(folder: Path) -> tuple[Any, Any, Any]:
    """The public ``LinearGM``, ``LinearClassifier`` and ``PyramidDataset``."""
    sys.path.insert(0, str(folder / "src"))
    for name in ("wandb", "einops", "config", "augmentation", "data", "data.dataloaders", "models", "my_utils"):
        sys.modules[name] = mock.MagicMock()
    sys.modules["my_utils.log_utils"] = mock.MagicMock()

    def rearrange(x: Tensor, pattern: str, **sizes: int) -> Tensor:
        if pattern == "b c h w -> (b h w) c":
            return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        return x.view(-1, sizes["h"], sizes["w"], x.shape[1]).permute(0, 3, 1, 2)

    sys.modules["einops"].rearrange = rearrange  # type: ignore[attr-defined]
    del sys.modules["models"]
    models = types.ModuleType("models")
    models.__path__ = [str(folder / "src" / "models")]
    models.get_fc = models.get_model = None  # type: ignore[attr-defined]
    sys.modules["models"] = models
    from models.linear_classifier import LinearClassifier  # type: ignore[import-not-found]
    from synsets.pyramid import PyramidDataset  # type: ignore[import-not-found]

    distillation = types.ModuleType("distillation")
    distillation.__path__ = [str(folder / "src" / "distillation")]
    sys.modules["distillation"] = distillation
    from distillation.linear_gm import LinearGM  # type: ignore[import-not-found]

    return LinearGM, LinearClassifier, PyramidDataset


def main() -> None:
    randn = torch.randn

    def randn_here(*arguments: Any, device: Any = None, **options: Any) -> Tensor:
        return randn(*arguments, **options)

    with mock.patch.object(Tensor, "cuda", lambda self, **_: self), mock.patch("torch.randn", randn_here):
        tensors = compute(*public(Path(sys.argv[1])))
    save_file(
        {name: value.detach().contiguous() for name, value in tensors.items()},
        Path(__file__).with_suffix(".safetensors"),
    )


def compute(LinearGM: Any, LinearClassifier: Any, PyramidDataset: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    encoder = torch.randn(DIM, 3 * SIZE * SIZE) / SIZE
    out: dict[str, Tensor] = {"encoder": encoder}

    # images: the pyramid from 1 pixel, extended to 2, 4, 8 and 12; each level also as it was when it came
    cfg = types.SimpleNamespace(
        ipc=1,
        pyramid_start_res=1,
        syn_res=SIZE,
        init_mode="noise",
        lr=2e-3,
        decorrelate_color=True,
        augs_per_batch=VIEWS,
    )
    pyramid = PyramidDataset(types.SimpleNamespace(num_classes=CLASSES), cfg)
    for _ in range(4):
        out[f"before.{pyramid.pyramid[0].shape[-1]}"] = pyramid.pyramid[0]
        pyramid.extend_pyramid()
    images, labels = pyramid.get_data()
    for level in pyramid.pyramid:
        out[f"level.{level.shape[-1]}"] = level
    out["images"], out["labels"] = images, labels

    # one step: both gradients, the loss, and its gradient with respect to the images and the levels
    self = types.SimpleNamespace(
        cfg=cfg,
        real_augmentor=lambda x: x,
        syn_augmentor=lambda x: x + 0.01 * torch.arange(len(x)).view(-1, 1, 1, 1),  # every view another one
        train_dataset=types.SimpleNamespace(normalize=lambda x: (x - 0.5) / 0.25),
    )

    def model(x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1) @ encoder.T)

    fc = LinearClassifier(DIM, CLASSES)
    fc.linear.bias.data.normal_(std=0.1)
    real, real_labels = torch.rand(VIEWS * CLASSES, 3, SIZE, SIZE), torch.randint(CLASSES, (VIEWS * CLASSES,))
    images.retain_grad()
    grad_real = LinearGM.get_real_grad(self, real, real_labels, model, fc)
    grad_syn = LinearGM.get_syn_grad(self, images, labels, model, fc)
    loss = 1 - torch.nn.functional.cosine_similarity(grad_real, grad_syn, dim=0)
    loss.backward()
    out |= {"weight": fc.linear.weight, "bias": fc.linear.bias, "real": real, "real_labels": real_labels}
    out |= {"grad_real": grad_real, "grad_syn": grad_syn, "loss": loss[None], "image_gradient": images.grad}
    for level in pyramid.pyramid:
        out[f"level_gradient.{level.shape[-1]}"] = level.grad
    return out


if __name__ == "__main__":
    main()
