"""``python -m tests.gpu`` (``make gpu``): every stage on a real CUDA device, in some minutes; prints a table.

Needs torch, timm, numpy and the library's own pure packages alone, no pytest; exits with 1 when anything fails.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from clpdd import DistillSettings, EvaluateSettings, Workspace
from clpdd.config.runtime import RuntimeSettings
from clpdd.config.settings import Settings
from clpdd.config.variants import MethodVariant
from clpdd.datasets.index import Index
from clpdd.distilled.dataset import DistilledSet
from clpdd.errors import ResourceError
from clpdd.probe.classifier import classify_files, train_classifier
from clpdd.stages.distill import distill
from clpdd.stages.project import Project, Run
from tests.device.__main__ import CHOICES, sets
from tests.ranks import Launcher

from . import kernels
from .work import VIEWS, digest, started, workspace

STEPS = {"steps": 12, "augmentations": 4, "validate_every": 4, "preview_every": 6}
SAVES = {"checkpoint_every_steps": 4}
TWICE = {"batch": 8, "kept": 0}
KILLED: dict[str, tuple[str, dict[str, Any]]] = {
    "one pass": ("transformer", {}),
    "one pass, float32": ("transformer", {"settings": {"precision": "float32"}}),
    "two passes": ("transformer", {"plan": TWICE}),
    "two passes, replayed": ("transformer", {"plan": TWICE | {"replayed": True}}),
    "some graphs kept": ("transformer", {"plan": {"batch": 8, "kept": 24}}),
    "all graphs kept": ("transformer", {"plan": {"batch": 8, "kept": 40}}),
    "compiled": ("transformer", {"settings": {"compile": True}}),
    "compiled, some kept": (
        "transformer",
        {"settings": {"compile": True}, "plan": TWICE | {"kept": 24, "compiled": True}},
    ),
    "compiled, replayed": ("transformer", {"plan": TWICE | {"compiled": True, "replayed": True}}),
    "state in host memory": ("transformer", {"plan": TWICE, "runtime": {"state": "host"}}),
    "state and features in host memory": (
        "convolutional",
        {"plan": TWICE, "settings": {"outer_batch": 40}, "runtime": {"state": "host", "features": "host"}},
    ),
    "features streamed, learned labels": (
        "convolutional",
        {"settings": {"outer_batch": 0, "labels": "learned"}, "runtime": {"features": "stream"}},
    ),
    "pyramid growing": (
        "convolutional",
        {"settings": {"initialisation": "noise", "extend_every": 2}, "plan": {"batch": 12, "kept": 12}},
    ),
    "lgm": ("convolutional", {"settings": {"method": "lgm"}, "plan": {"batch": 8, "kept": 16}}),
}


def cases(root: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Names, and what to call: it says what was found and fails on what is wrong."""
    yield from kernels.cases()
    yield "matrix of the stand-in device, float32", lambda: _matrix(root)
    yield "the same in bfloat16", lambda: _rough(root)
    yield "cache, kernels and distill in one process", lambda: _in_one(root)
    yield "evaluation, probe, classifier, predictions", lambda: _evaluation(root)
    yield "runtime.memory", lambda: _memory(root)
    yield "NCCL, one rank", lambda: _collectives(1)
    if torch.cuda.device_count() > 1:
        yield "NCCL, two ranks", lambda: _collectives(2)
    with ThreadPoolExecutor(7) as pool:
        ends = {name: pool.submit(_killed, root, name) for name in KILLED}
        for name, end in ends.items():
            yield f"killed and resumed: {name}", end.result


def _matrix(root: Path) -> str:
    here = sets(workspace(root, "convolutional", "cpu"), root / "matrix-cpu")
    there = sets(workspace(root, "convolutional"), root / "matrix", precision="float32")
    far = [
        (one.images.int() - other.images.int()).abs().float().mean().item()
        for one, other in zip(here, there, strict=True)
    ]
    for (method, settings, _), apart in zip(CHOICES, far, strict=True):
        assert apart < 0.5, f"{method} {settings}: pixels are {apart:.2f} levels apart"
    return f"{len(far)} choices, pixels at most {max(far):.3f} of 255 levels from the CPU's"


def _rough(root: Path) -> str:
    exact = [DistilledSet.load(root / "matrix" / str(number)) for number in range(len(CHOICES))]
    rough = sets(workspace(root, "convolutional"), root / "matrix-rough")
    far = 0.0
    for one, other in zip(exact, rough, strict=True):
        curves = [made.info.get("curves", {}).get("loss", []) for made in (one, other)]
        far = max([far, *(abs(a / b - 1) for (_, a), (_, b) in zip(*curves, strict=True))])
    assert far < 0.05
    return f"losses at most {100 * far:.1f} % from float32's"


def _in_one(root: Path) -> str:
    made = workspace(root / "one", "transformer").distill("clp", DistillSettings(augment=VIEWS, steps=2))
    return f"loss {made.info['curves']['loss'][-1][1]:.3f}"


def _evaluation(root: Path) -> str:
    settings = EvaluateSettings(seeds=2, views=3, epochs=10, augment=VIEWS, precision="float32")
    scores, classifiers = [], []
    for place in ("cpu", "cuda"):
        work = workspace(root, "convolutional", place)
        work.distill("centroid", DistillSettings(augment=VIEWS))
        scores.append(work.evaluate("centroid", settings=settings)["centroid"])
        made = DistilledSet.load(work.layout.distilled(work.encoder.name, "centroid"))
        classifiers += [train_classifier(made, work.encoder, settings, protocol=p) for p in ("sgd", "closed_form")]
    apart = max(abs(scores[0][protocol] - scores[1][protocol]) for protocol in scores[0])
    assert apart < 2, scores
    for one, other in zip(classifiers[:2], classifiers[2:], strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=0.01, atol=0.01)
    return f"{len(scores[0])} protocols at most {apart:.1f} points from the CPU's; {_predictions(root, classifiers)}"


def _predictions(root: Path, classifiers: list[Any]) -> str:
    files, found = [], []
    index = workspace(root, "convolutional", "cpu").layout.index("test")
    opened = Index.open(index)
    for row in range(20):
        files.append(root / f"{row}.png")
        opened.image(row).save(files[-1])
    for classifier, place in ((classifiers[1], "cpu"), (classifiers[3], "cuda")):
        encoder = workspace(root, "convolutional", place).encoder
        found.append([one.classes for one in classify_files(classifier, encoder, files)])
    same = sum(a == b for a, b in zip(*found, strict=True))
    assert same >= 19, found
    return f"{same} of 20 files named alike"


def _memory(root: Path) -> str:
    work = workspace(root, "transformer")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    _distilled(work, root / "limited", RuntimeSettings(memory=1.5), steps=2, augmentations=40)
    peak = torch.cuda.max_memory_reserved() / 2**30
    assert peak < 0.9
    refused = ""
    try:
        _distilled(work, root / "none", RuntimeSettings(memory=0.61), steps=2)
    except ResourceError as error:
        refused = str(error)
    assert "raise runtime.memory" in refused, "10 MiB were enough"
    return f"{peak:.2f} GiB reserved of 0.9 beside CUDA's own; too little is refused by name"


def _distilled(work: Workspace, out: Path, runtime: RuntimeSettings, **settings: Any) -> DistilledSet:
    return distill(
        MethodVariant("clp", "clp", DistillSettings(augment=VIEWS, **settings)),
        Project(Settings(), work.layout).training(work.encoder.name),
        work.encoder,
        out / "set",
        run=Run(work=out / "work", runtime=runtime),
    )


def _collectives(size: int) -> str:
    launcher = Launcher()
    try:
        for process in launcher.ranks(*[["-m", "tests.gpu.rank"]] * size):
            out, said = process.communicate(timeout=240)
            assert process.returncode == 0, said[-2000:]
        return out.strip()
    finally:
        launcher.end()


def _killed(root: Path, name: str) -> str:
    kind, case = KILLED[name]
    case = case | {"settings": STEPS | case.get("settings", {}), "runtime": SAVES | case.get("runtime", {})}
    folder = root / "killed" / name.replace(" ", "-").replace(",", "")
    whole = started(root, kind, folder / "whole", case)
    part = started(root, kind, folder / "part", case, hold_at=8)
    assert part.stdout is not None
    while (line := part.stdout.readline()) and int(line) < 8:
        pass
    said = part.stderr.read() if not line and part.stderr else ""
    assert line, said[-2000:]
    part.kill()
    part.communicate()
    for process in (whole, started(root, kind, folder / "part", case)):
        _, said = process.communicate()
        assert process.returncode == 0, said[-2000:]
    assert "continuing at step" in said, said[-2000:]
    assert digest(folder / "whole") == digest(folder / "part"), "other bytes"
    plan = [line for line in said.splitlines() if line.startswith("a step: ")]
    return f"equal bytes ({plan[0].removeprefix('a step: ')})" if plan else "equal bytes"


def main() -> int:
    """Print the table; how many cases failed."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    begun, failed = time.monotonic(), 0
    about = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    print(f"{about}\n\n| what | seconds | found |\n| --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for kind in ("convolutional", "transformer"):
            workspace(root, kind)
        for name, run in cases(root):
            since = time.monotonic()
            try:
                found = run()
            except Exception as error:
                traceback.print_exc()
                failed += 1
                found = f"**FAILED**: {(str(error).splitlines() or [type(error).__name__])[0]}"
            print(f"| {name} | {time.monotonic() - since:.1f} | {found} |", flush=True)
    print(f"\n{failed} failed, {time.monotonic() - begun:.0f} s in all")
    return min(failed, 1)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here")
    sys.exit(main())
