#!/usr/bin/env bash
# timm 1.0.15 against 1.0.31: for an input that is not square, with crop mode "center", the older version's transform for
# evaluation resizes without the interpolation that it is asked for (and that it reports in the model's configuration); the
# newer one takes it. The same model, the same weights and the same image give other pixels, and so other features.
# Square inputs are alike in both.
#
# Seen, of a noise image of 90 x 120 pixels, bicubic asked for, as bytes:
#   48 x 48   equal in both versions
#   48 x 36   mean difference of a value 5.6 of 255, largest 25
# What to do: prepare images oneself by the configuration, or compare features that were cached with another version before
# using them.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
export HOME="$place" HF_HUB_OFFLINE=1
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet "torch==2.14.1" "torchvision==0.29.1" "numpy==2.4.6" "pillow==12.0.0" pyyaml safetensors huggingface_hub
for version in 1.0.15 1.0.31; do
    "$place/venv/bin/python" -m pip install --quiet --no-deps --target "$place/timm-$version" "timm==$version"
done
cat > "$place/look.py" <<'PYTHON'
import sys

import numpy as np
import timm
from PIL import Image
from timm.data import create_transform

image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
sizes = {}
for size in ((48, 48), (48, 36)):
    made = create_transform((3, *size), interpolation="bicubic", crop_mode="center", crop_pct=1.0, normalize=False)
    sizes["x".join(map(str, size))] = np.asarray(made(image))
np.savez(sys.argv[1], **sizes)
print("timm", timm.__version__)
PYTHON
for version in 1.0.15 1.0.31; do
    PYTHONPATH="$place/timm-$version" "$place/venv/bin/python" -W ignore "$place/look.py" "$place/$version.npz"
done
"$place/venv/bin/python" - "$place" <<'PYTHON'
import sys

import numpy as np

old, new = (np.load(f"{sys.argv[1]}/{version}.npz") for version in ("1.0.15", "1.0.31"))
for size in old.files:
    apart = np.abs(old[size].astype(int) - new[size].astype(int))
    print(f"{size}: mean difference {apart.mean():.1f}, largest {apart.max()}")
    assert (apart.max() == 0) == (size == "48x48"), "this has changed"
print("as described")
PYTHON
