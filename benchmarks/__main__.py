"""Where a step's time goes, measured side by side in one run: ``python -m benchmarks`` (or ``make bench``).

Prints a table: seconds of a CLP-DD step against the bare encoder passes it cannot do without (forward and
input-gradient backward over the same number of views), and images per second of the cache stage against bare encoding.
Ratios are what to compare; absolute times belong to the machine.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from clpdd.config import CacheSettings, DatasetSettings, DistillSettings, KernelSettings
from clpdd.datasets import Index, build_index
from clpdd.encoders import encode, load_encoder
from clpdd.features import FeatureStore, cache_features
from clpdd.kernels import Kernels, compute_kernels
from clpdd.layout import Layout
from clpdd.methods.base import Context
from clpdd.methods.clp import ClosedFormProbe
from clpdd.state import ImageState
from clpdd.synthetic import Parameterisation


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of ``work`` after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="clpdd_resnet14")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    encoder = load_encoder(options.encoder)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(Path(folder))
        build_index(DatasetSettings(), 0, layout.index("train").parent)
        begun = time.perf_counter()
        stores = {
            split: cache_features(
                layout.index(split), encoder, CacheSettings(workers=0), layout.features("e", split), layout.work
            )
            for split in ("train", "validation")
        }
        images = sum(map(len, stores.values()))
        cached = images / (time.perf_counter() - begun)
        batch = torch.rand(64, 3, encoder.size, encoder.size)
        bare = 64 / seconds(lambda: encode(encoder, batch, 64), options.repeats)
        features = layout.features("e", "train"), layout.features("e", "validation")
        compute_kernels(*features, KernelSettings(), layout.kernels("e"), layout.work)
        settings = DistillSettings()
        index = Index.open(layout.index("train"))
        train, validation = (FeatureStore.open(path) for path in features)
        context = Context(
            settings, 0, encoder, index, train, validation, Kernels.load(layout.kernels("e")), Path(folder)
        )
        step, passes = _step(context, options.repeats)
    print(f"step       {1e3 * step:8.1f} ms   bare encoder passes {1e3 * passes:8.1f} ms   ratio {step / passes:.2f}")
    print(f"caching    {cached:8.0f} images/s   bare encoder {bare:8.0f} images/s   ratio {cached / bare:.2f}")


def _step(context: Context, repeats: int) -> tuple[float, float]:
    problem = ClosedFormProbe(context)
    n = len(context.labels)
    images = ImageState(
        Parameterisation(
            n,
            context.size,
            pyramid=True,
            decorrelate=True,
            start=torch.rand(n, 3, context.size, context.size),
            seed=0,
            device=context.encoder.mean.device,
        )
    )

    def step() -> None:
        images.begin(1e-3)
        problem.step(images, 0, images.update)

    views = torch.rand(n * context.settings.augmentations, 3, context.encoder.size, context.encoder.size)

    def passes() -> None:
        leaf = views.detach().requires_grad_()
        torch.autograd.grad(context.encoder(leaf).sum(), leaf)

    return seconds(step, repeats), seconds(passes, repeats)


if __name__ == "__main__":
    main()
