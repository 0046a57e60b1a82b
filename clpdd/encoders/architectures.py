"""Small timm architectures whose weights ship with the package.

Importing this module registers them, after which ``timm.create_model("clpdd_resnet14", pretrained=True)``
works offline and goes down the same path as any other timm model.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet

__all__ = ["clpdd_resnet14"]

_WEIGHTS = resources.files("clpdd") / "weights" / "clpdd_resnet14.tin100.safetensors"

default_cfgs = generate_default_cfgs(
    {
        "clpdd_resnet14.tin100": {
            "file": str(_WEIGHTS),
            "num_classes": 100,
            "input_size": (3, 64, 64),
            "pool_size": (2, 2),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "conv1.0",
            "classifier": "fc",
            "license": "apache-2.0",
        }
    }
)


@register_model
def clpdd_resnet14(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """A narrow 14-layer bottleneck ResNet for 64 x 64 images: 1.55 M parameters, 768 features.

    Bottleneck blocks put a ViT-B's feature width on a 3 MB file, and plain convolutions keep both the
    forward and the input-gradient pass quick on a CPU. Trained by ``clpdd pretrain``.
    """
    arguments: dict[str, Any] = {
        "block": Bottleneck,
        "layers": (1, 1, 1, 1),
        "channels": (32, 64, 128, 192),
        "stem_type": "deep_tiered",
        "stem_width": 16,
        "avg_down": True,
    }
    return build_model_with_cfg(ResNet, "clpdd_resnet14", pretrained, **(arguments | kwargs))
