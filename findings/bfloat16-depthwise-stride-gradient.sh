#!/usr/bin/env bash
# torch 2.14.1 on a CPU: the gradient of the input of a depthwise convolution with a stride of 2 takes many times as long in
# bfloat16 as in float32, on a processor that multiplies in bfloat16 (AVX-512 BF16, AMX) and does the forward pass and the
# same gradient at stride 1 at least as quickly in it. A frozen EfficientNet-Lite or MobileNet under autocast is slower in
# bfloat16 than in float32 for that reason, when gradients of its input are wanted.
#
# Seen on an Intel Xeon with AMX, one thread, beside other work (milliseconds in float32 and bfloat16, and their ratio):
#   240 channels, 28 px, 3 x 3, stride 1      1.3    1.3    1.0
#   240 channels, 28 px, 3 x 3, stride 2      1.1   22.7   20.8
#   144 channels, 56 px, 5 x 5, stride 2      3.5   58.7   17.0
# What to do: take that one gradient in float32 (aten::convolution_backward on the widened gradient and weights).
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
export HOME="$place"
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet "torch==2.14.1" "numpy<2.5"
"$place/venv/bin/python" -W ignore - <<'PYTHON'
import time

import torch

torch.set_num_threads(1)
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())


def milliseconds(dtype, channels, side, kernel, stride):
    image = torch.rand(10, channels, side, side).to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.rand(channels, 1, kernel, kernel).to(dtype)
    made = torch.nn.functional.conv2d(image, weight, padding=kernel // 2, stride=stride, groups=channels)
    gradient, taken = torch.ones_like(made), []
    for _ in range(9):
        begun = time.thread_time()
        torch.autograd.grad(made, image, gradient, retain_graph=True)
        taken.append(time.thread_time() - begun)
    return 1e3 * min(taken)


def ratio(*how):
    one, half = (milliseconds(dtype, *how) for dtype in (torch.float32, torch.bfloat16))
    print("channels, side, kernel, stride", how, f"{one:.1f} ms, {half:.1f} ms: {half / one:.1f}")
    return half / one


assert ratio(240, 28, 3, 1) < 3, "this has changed"
assert ratio(240, 28, 3, 2) > 5, "this has changed"
assert ratio(144, 56, 5, 2) > 4, "this has changed"
PYTHON
echo "as described"
