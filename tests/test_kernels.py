"""The kernel stage, from real feature stores of a real (randomly initialised) encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import zarr
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

import clpdd.encoders.architectures  # noqa: F401  (registers the shipped encoder's architecture)
from clpdd.config.cache import CacheSettings
from clpdd.config.kernels import KernelSettings
from clpdd.datasets.index import IndexWriter
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import load_encoder
from clpdd.errors import ArtifactError, DataError, NumericalError
from clpdd.features.kernels import Kernels
from clpdd.features.store import FeatureStore
from clpdd.functional.ridge import centred_one_hot, solve
from clpdd.stages.cache import cache_features
from clpdd.stages.kernels import compute_kernels
from clpdd.storage.files import sha256_bytes, sha256_tree
from tests.runs import run_in

CLASSES = 4
SMALL = KernelSettings(block_rows=50, nearest=3, ridge_grid=[0.01, 0.1, 1.0])
MakeStore = Callable[..., Path]


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[Encoder]:
    """Two encoders of one name that differ in their weights."""
    built = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = timm.create_model("clpdd_resnet14", num_classes=0)
        path = tmp_path_factory.mktemp("weights") / "random.safetensors"
        save_file(model.state_dict(), path)
        built.append(load_encoder("clpdd_resnet14", weights=path, image_size=32, device="cpu"))
    return built


def coloured(labels: NDArray[np.int64], seed: int) -> NDArray[np.uint8]:
    """Noise images ``(n, 32, 32, 3)`` whose tint tells the class."""
    rng = np.random.default_rng(seed)
    tints = np.random.default_rng(99).integers(60, 196, (CLASSES, 3))
    noise = rng.normal(0, 50, (len(labels), 32, 32, 3)) + rng.normal(0, 25, (len(labels), 1, 1, 3))
    return (tints[labels % CLASSES][:, None, None] + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def make_store(encoders: list[Encoder], tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    def make(
        labels: Sequence[int],
        split: str,
        *,
        names: str = "abcd",
        seed: int = 0,
        encoder: int = 0,
        constant: bool = False,
    ) -> Path:
        folder = tmp_path_factory.mktemp("store")
        targets = np.asarray(labels, dtype=np.int64)
        images = coloured(targets, seed)
        metadata = {"class_names": list(names), "dataset": "test", "source": {}, "max_pixels": 10_000}
        with IndexWriter(folder / "index.parquet", split, metadata) as writer:
            for row, label in enumerate(targets.tolist()):
                buffer = BytesIO()
                Image.fromarray(images[0 if constant else row]).save(buffer, "png")
                data = buffer.getvalue()
                writer.add(f"{split}-{row:06d}", data, label, 32, 32, sha256_bytes(data))
        settings = CacheSettings(dtype="float32", chunk_rows=32, shard_rows=64)
        target = folder / f"{split}.zarr"
        cache_features(folder / "index.parquet", encoders[encoder], settings, target, run_in(folder / "work"))
        return target

    return make


@pytest.fixture(scope="session")
def train(make_store: MakeStore) -> Path:
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(CLASSES), (60, 50, 40, 2)))
    return make_store(labels.tolist(), "train")


@pytest.fixture(scope="session")
def validation(make_store: MakeStore) -> Path:
    return make_store([0, 1, 2, 3] * 15, "validation", seed=1)


@pytest.fixture(scope="session")
def made(train: Path, validation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kernels")
    compute_kernels(train, validation, SMALL, root / "k", run_in(root / "work"))
    return root / "k"


def features(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    store = FeatureStore.open(path)
    return store.features().double().numpy(), store.labels.numpy()


def test_moments_and_spectrum_are_numpys(train: Path, made: Path) -> None:
    kernels, (Z, labels) = Kernels.load(made), features(train)
    Y = np.eye(CLASSES)[labels]
    centred = Z - Z.mean(0)
    assert (kernels.n, kernels.counts.tolist()) == (152, [60, 50, 40, 2])
    np.testing.assert_allclose(kernels.gram.numpy(), Z.T @ Z, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(kernels.cross.numpy(), Z.T @ Y, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(kernels.mean.numpy(), Z.mean(0), rtol=1e-6, atol=1e-7)
    means = np.stack([Z[labels == c].mean(0) for c in range(CLASSES)])
    np.testing.assert_allclose(kernels.class_means.numpy(), means, rtol=1e-6, atol=1e-7)
    assert kernels.scale == pytest.approx(np.sqrt(np.square(centred).mean()), rel=1e-9)
    expected = np.linalg.svd(centred, compute_uv=False) ** 2 / len(Z)
    got = kernels.eigenvalues.numpy()
    np.testing.assert_allclose(got[: len(expected)], expected, atol=1e-9 * expected[0])
    assert (got >= 0).all()
    assert (np.diff(got) <= 0).all()
    shares = expected[expected > 0] / expected.sum()
    assert kernels.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_types_are_as_promised(made: Path, encoders: list[Encoder], train: Path, validation: Path) -> None:
    kernels = Kernels.load(made)
    for name, dtype in {
        "counts": torch.int64,
        "class_means": torch.float32,
        "mean": torch.float32,
        "gram": torch.float64,
        "cross": torch.float64,
        "eigenvalues": torch.float64,
        "weights": torch.float32,
        "bias": torch.float32,
        "nearest": torch.int64,
    }.items():
        assert getattr(kernels, name).dtype == dtype
    assert kernels.class_names == list("abcd")
    assert kernels.encoder == encoders[0].describe()
    digests = {"train": FeatureStore.open(train).digest, "validation": FeatureStore.open(validation).digest}
    assert kernels.digests == digests
    assert sorted(path.name for path in made.iterdir()) == ["kernels.json", "moments.safetensors"]


def test_the_probe_is_ridge_regression_on_centred_features_and_its_grid_is_scored_on_validation(
    train: Path, validation: Path, made: Path
) -> None:
    kernels, (Z, labels), (V, truth) = Kernels.load(made), features(train), features(validation)
    mean = Z.mean(0)
    Y = centred_one_hot(torch.from_numpy(labels), CLASSES).double()
    scores = []
    for ridge in SMALL.ridge_grid:
        W = solve(torch.from_numpy(Z - mean), Y, ridge).numpy()
        scores.append(100 * float((((V - mean) @ W).argmax(1) == truth).mean()))
        if ridge == kernels.ridge:
            np.testing.assert_allclose(kernels.weights.numpy(), W, atol=1e-5 * np.abs(W).max())
            np.testing.assert_allclose(kernels.bias.numpy(), -mean @ W, atol=1e-5)
    assert [row["ridge"] for row in kernels.ridge_scores] == SMALL.ridge_grid
    assert [row["validation_top1"] for row in kernels.ridge_scores] == pytest.approx(scores)
    best = max(scores)
    assert kernels.ridge == max(r for r, score in zip(SMALL.ridge_grid, scores, strict=True) if score == best)
    assert best > 40  # chance is 25


def test_of_equal_scores_the_larger_ridge_wins(train: Path, validation: Path, tmp_path: Path) -> None:
    settings = SMALL.model_copy(update={"ridge_grid": [0.5, 0.5000001, 0.4999999]})
    kernels = compute_kernels(train, validation, settings, tmp_path / "k", run_in(tmp_path / "work"))
    scores = [row["validation_top1"] for row in kernels.ridge_scores]
    assert len(set(scores)) == 1
    assert kernels.ridge == 0.5000001


def test_nearest_are_sorted_by_distance_and_padded(train: Path, made: Path) -> None:
    kernels, (Z, labels) = Kernels.load(made), features(train)
    for c in range(CLASSES):
        rows = np.flatnonzero(labels == c)
        distances = np.linalg.norm(Z[rows] - Z[rows].mean(0), axis=1).astype(np.float32)
        expected = rows[np.lexsort((rows, distances))][:3].tolist()
        assert kernels.nearest[c].tolist() == expected + [-1] * (3 - len(expected))
    # The two rows of the last class are equally far from their mean: the lower row comes first.
    first, second, pad = kernels.nearest[3].tolist()
    assert first < second
    assert pad == -1


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_block_size_changes_rounding_alone(
    train: Path, validation: Path, made: Path, tmp_path: Path, rows: int
) -> None:
    settings = SMALL.model_copy(update={"block_rows": rows})
    one, other = (
        compute_kernels(train, validation, settings, tmp_path / "k", run_in(tmp_path / "w")),
        Kernels.load(made),
    )
    assert float((one.gram - other.gram).norm() / other.gram.norm()) < 1e-10
    assert float((one.cross - other.cross).norm() / other.cross.norm()) < 1e-10
    assert torch.equal(one.nearest, other.nearest)
    assert one.ridge_scores == other.ridge_scores


def test_the_same_inputs_give_the_same_bytes_and_are_not_computed_twice(
    train: Path, validation: Path, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compute_kernels(train, validation, SMALL, tmp_path / "k", run_in(tmp_path / "work"))
    assert sha256_tree(tmp_path / "k") == sha256_tree(made)
    with caplog.at_level("INFO"):
        compute_kernels(train, validation, SMALL, tmp_path / "k", run_in(tmp_path / "work"))
    assert "already done" in caplog.text


# -- refusals -------------------------------------------------------------------------------------------------------


def refused(
    kind: type[Exception], match: str, train: Path, validation: Path, tmp_path: Path, **changes: object
) -> None:
    with pytest.raises(kind, match=match):
        compute_kernels(train, validation, SMALL.model_copy(update=changes), tmp_path / "k", run_in(tmp_path / "work"))
    assert not (tmp_path / "k").exists()


def test_a_class_without_training_images_is_named(make_store: MakeStore, validation: Path, tmp_path: Path) -> None:
    path = make_store([0, 1, 3, 0, 1, 3], "train")
    refused(DataError, r"1 of 4 classes have no training images \(c\)", path, validation, tmp_path)


def test_one_class_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    path, held_out = make_store([0] * 5, "train", names="a"), make_store([0] * 3, "validation", names="a", seed=1)
    refused(DataError, "two or more", path, held_out, tmp_path)


def test_splits_of_other_classes_are_refused(make_store: MakeStore, train: Path, tmp_path: Path) -> None:
    path = make_store([0, 1, 2, 3], "validation", names="abce")
    refused(DataError, "classes of .* differ", train, path, tmp_path)


def test_labels_beyond_the_classes_are_refused(make_store: MakeStore, train: Path, tmp_path: Path) -> None:
    path = make_store([0, 1, 2, 3], "validation", seed=2)
    zarr.open_array(str(path / "labels"), mode="r+")[2] = 4  # no index holds such a label; another program might
    refused(DataError, r"row 2 of .* has label 4, but there are 4 classes", train, path, tmp_path)


def test_the_test_split_is_refused(make_store: MakeStore, train: Path, tmp_path: Path) -> None:
    refused(DataError, "evaluation alone", train, make_store([0, 1, 2, 3], "test"), tmp_path)


def test_stores_of_two_encoders_are_refused(make_store: MakeStore, train: Path, tmp_path: Path) -> None:
    path = make_store([0, 1, 2, 3], "validation", encoder=1)
    refused(ArtifactError, "different encoders or weights", train, path, tmp_path)


def test_features_that_are_all_the_same_are_refused(make_store: MakeStore, validation: Path, tmp_path: Path) -> None:
    refused(DataError, "are the same", make_store([0, 1, 2, 3] * 3, "train", constant=True), validation, tmp_path)


def test_a_ridge_too_small_for_the_rank_is_refused(train: Path, validation: Path, tmp_path: Path) -> None:
    refused(
        NumericalError,
        r"singular.*raise or remove 1e-30 in kernels\.ridge_grid",
        train,
        validation,
        tmp_path,
        ridge_grid=[1e-30, 1.0],
    )


def test_damaged_kernels_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        Kernels.load(tmp_path / "none")
    good = {name: (made / name).read_bytes() for name in ("kernels.json", "moments.safetensors")}
    folder = tmp_path / "k"
    folder.mkdir()

    def expect(name: str, data: bytes, match: str) -> None:
        for other, content in good.items():
            (folder / other).write_bytes(content)
        (folder / name).write_bytes(data)
        with pytest.raises(ArtifactError, match=match):
            Kernels.load(folder)

    moments, record = good["moments.safetensors"], good["kernels.json"]
    flipped = bytearray(moments)
    flipped[len(moments) // 2] ^= 1
    expect("moments.safetensors", bytes(flipped), "damaged")
    expect("moments.safetensors", moments[:-1], "damaged")
    expect("kernels.json", record[:-10], "damaged")
    expect("kernels.json", b"[]", "no record")
    expect("kernels.json", record.replace(b'"n": 152', b'"n": 153'), "altered")
    expect("kernels.json", record.replace(b'"format": 1', b'"format": 7'), "format 7, this version reads 1")
    for name, content in good.items():
        (folder / name).write_bytes(content)
    (folder / "moments.safetensors").unlink()
    with pytest.raises(ArtifactError, match="does not exist"):
        Kernels.load(folder)
