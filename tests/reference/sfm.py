"""How sfm.safetensors was made: the public implementation of SFM, run on small random tensors.

    git clone https://github.com/einsteinxia/SFM PUBLIC
    python tests/reference/sfm.py PUBLIC

Nothing of that repository is kept here but the numbers it computes. Its packages for logging, data and big encoders are
stood in for by empty modules, its autocast is off on the CPU (float32), and the encoder is a linear layer and a tanh,
whose weights are among the tensors. Losses and gradients are those of one image per class; with more its flow has
another divisor than the paper's equation.
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

CLASSES, VIEWS, SIZE, DIM, ALPHA = 5, 3, 8, 12, 0.3


def public(folder: Path) -> Any:
    """The public ``LinearGM``."""
    sys.path.insert(0, str(folder))
    for name in ("wandb", "config", "data", "data.dataloaders", "models", "synsets"):
        sys.modules[name] = mock.MagicMock()
    for name in ("augmentation", "augmentation.standard_aug", "torchvision", "torchvision.transforms"):
        sys.modules[name] = mock.MagicMock()
    distillation = types.ModuleType("distillation")
    distillation.__path__ = [str(folder / "distillation")]
    sys.modules["distillation"] = distillation
    from distillation.linear_gm import LinearGM  # type: ignore[import-not-found]

    return LinearGM


def main() -> None:
    tensors = compute(public(Path(sys.argv[1])))
    save_file(
        {name: value.detach().contiguous() for name, value in tensors.items()},
        Path(__file__).with_suffix(".safetensors"),
    )


def compute(LinearGM: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    encoder = torch.randn(DIM, 3 * SIZE * SIZE) / SIZE
    centres, images = torch.randn(CLASSES, DIM), torch.rand(CLASSES, 3, SIZE, SIZE)
    out: dict[str, Tensor] = {"encoder": encoder, "centres": centres, "images": images}
    for method in ("sfm", "sfm_decouple"):
        pixels = images.clone().requires_grad_()
        calls = iter(range(VIEWS))
        self = LinearGM.__new__(LinearGM)
        self.cfg = types.SimpleNamespace(ipc=1, augs_per_batch=VIEWS, alpha=ALPHA, method=method)
        self.statistic_center = centres
        self.backbone_model = lambda x: torch.tanh(x.flatten(1) @ encoder.T)
        self.train_dataset = types.SimpleNamespace(normalize=lambda x: (x - 0.5) / 0.25)
        self.syn_augmentor = lambda x, calls=calls: x + 0.01 * next(calls)  # every view another one
        self.distilled_dataset = types.SimpleNamespace(
            get_data=lambda pixels=pixels: (pixels, torch.arange(CLASSES)),
            optimizer=mock.MagicMock(param_groups=[{"params": [pixels]}]),
        )
        out[f"{method}.loss"] = torch.tensor([self.match_flow()])
        assert pixels.grad is not None
        out[f"{method}.gradient"] = pixels.grad
    return out


if __name__ == "__main__":
    main()
