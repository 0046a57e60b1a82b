#!/usr/bin/env bash
# torch 2.8.0 with onnxscript 0.5.7 and onnx-ir 0.2.0, which pip takes together without a word: torch.onnx.export(dynamo=True)
# fails for every model, a linear layer and a softmax too. The exporter hands a model with functions to a conversion of
# versions that onnx-ir refuses since 0.2. With onnx-ir 0.1.12 it works.
#
# Seen:
#   onnx-ir 0.1.12  written
#   onnx-ir 0.2.0   PassError: ... _ConvertVersionPassRequiresInline ...
# What to do: beside torch 2.8 ask for onnx-ir<0.2, or take a newer torch.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
export HOME="$place"
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet "torch==2.8.0" "numpy<2.4" "onnx==1.17.0" "onnxscript==0.5.7" "onnx-ir==0.1.12"
look() {
    "$place/venv/bin/python" -W ignore - "$1" 2>/dev/null <<'PYTHON'
import sys
from importlib.metadata import version

import torch

model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Softmax(1)).eval()
try:
    torch.onnx.export(model, (torch.rand(2, 3),), dynamo=True, verbose=False)
    found = "written"
except Exception as error:
    found = f"{type(error).__name__}: {str(error)[:120]}"
print("torch", torch.__version__, "onnx-ir", version("onnx-ir"), found)
assert (found == "written") == (sys.argv[1] == "works"), "this has changed"
PYTHON
}
look works
"$place/venv/bin/python" -m pip install --quiet "onnx-ir==0.2.0"
look fails
echo "as described"
