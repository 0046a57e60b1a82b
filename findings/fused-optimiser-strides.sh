#!/usr/bin/env bash
# torch 2.14.1, CPU: a fused optimiser takes a gradient's memory in the order of the PARAMETER's strides. Where the
# gradient has others (a transposed one, say, which torch lets be assigned to `.grad`), elements are updated by the
# gradients of other elements, without an error or a warning; the unfused form of the same optimiser is right.
# On CUDA the same call is refused: "params, grads, exp_avgs, and exp_avg_sqs must have same dtype, device, and layout".
#
# Seen: SGD(lr=1).step() on zeros (2, 3) with the gradient [[0, 2, 4], [1, 3, 5]] of strides (1, 2)
#   fused=False  [[0, -2, -4], [-1, -3, -5]]
#   fused=True   [[0, -1, -2], [-3, -4, -5]]     and likewise for Adam's first moment
# What to do: give gradients the strides of their parameters before a fused optimiser sees them.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet "torch==2.14.1" "numpy==2.4.6"
cd "$place"
"$place/venv/bin/python" - <<'PY'
import torch

right = [[0.0, -2.0, -4.0], [-1.0, -3.0, -5.0]]
wrong = [[0.0, -1.0, -2.0], [-3.0, -4.0, -5.0]]
seen = {}
for fused in (False, True):
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.arange(6.0).view(3, 2).T
    assert weight.grad.stride() == (1, 2) and weight.stride() == (3, 1)
    torch.optim.SGD([weight], lr=1.0, fused=fused).step()
    seen[fused] = weight.tolist()
    print(f"torch {torch.__version__}, SGD, fused={fused}: {seen[fused]}")
moments = {}
for fused in (False, True):
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.arange(6.0).view(3, 2).T
    optimiser = torch.optim.Adam([weight], lr=1.0, fused=fused)
    optimiser.step()
    moments[fused] = (optimiser.state[weight]["exp_avg"] * 10).round().tolist()
    print(f"torch {torch.__version__}, Adam's first moment times 10, fused={fused}: {moments[fused]}")
negative = [[-x for x in row] for row in wrong], [[-x for x in row] for row in right]
assert seen == {False: right, True: wrong}, "the behaviour has changed"
assert moments == {False: negative[1], True: negative[0]}, "the behaviour has changed"
PY
echo "as described"
