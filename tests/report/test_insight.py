"""What takes the encoder: the picture of feature space, and mistakes with their confidence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clpdd.config.evaluate import EvaluateSettings
from clpdd.config.settings import Settings
from clpdd.datasets.index import Index
from clpdd.distilled.dataset import DistilledSet
from clpdd.features.kernels import Kernels
from clpdd.features.store import FeatureStore
from clpdd.report.axes import principal_axes, sample, scatter
from clpdd.report.insight import Insight, look_closer, mistakes
from clpdd.stages.report import write_report
from clpdd.storage.layout import Layout
from tests.conftest import World

from .conftest import Page

QUICK = EvaluateSettings(views=2, epochs=5)


@pytest.fixture(scope="module")
def central(world: World) -> DistilledSet:
    """The most central image of each class, as a set."""
    kernels = Kernels.load(world.layout.kernels(world.encoder.name))
    index = Index.open(world.layout.index("train"))
    rows = kernels.nearest[:, 0].tolist()
    images = [torch.tensor(list(index.image(row).convert("RGB").resize((64, 64)).tobytes())) for row in rows]
    pixels = torch.stack(images).to(torch.uint8).view(-1, 64, 64, 3).permute(0, 3, 1, 2)
    info = {"method": "centroid", "encoder": world.encoder.describe()}
    return DistilledSet(pixels, torch.arange(len(rows)), index.class_names, info)


@pytest.fixture(scope="module")
def insight(world: World, central: DistilledSet) -> Insight:
    made = DistilledSet(central.images.flip(-1), central.labels, central.class_names, central.info | {"method": "clp"})
    found = look_closer(world.layout, world.encoder, "clp", {"clp": made, "centroid": central}, QUICK, 0)
    assert found is not None
    return found


def test_axes_are_those_of_a_singular_value_decomposition(world: World) -> None:
    Z = FeatureStore.open(world.layout.features(world.encoder.name, "train")).features().double()
    axes, shares = principal_axes(Kernels.load(world.layout.kernels(world.encoder.name)))
    _, values, vectors = torch.linalg.svd(Z - Z.mean(0), full_matrices=False)
    torch.testing.assert_close((axes.T @ vectors[:2].T).abs(), torch.eye(2, dtype=torch.float64), atol=1e-4, rtol=0)
    expected = 100 * values[:2].square() / values.square().sum()
    assert shares == pytest.approx(expected.tolist(), rel=1e-3)
    assert all(axis[axis.abs().argmax()] > 0 for axis in axes.T)


def test_a_sample_comes_from_all_over_the_store(world: World) -> None:
    store = FeatureStore.open(world.layout.features(world.encoder.name, "train"))
    features, labels = sample(store, 10)
    everything = store.features()
    rows = [int((everything == row).all(1).nonzero()[0]) for row in features]
    assert (rows[0], rows[-1], len(rows)) == (0, len(store) - 1, 10)
    assert torch.equal(labels, store.labels[rows])


def test_images_lie_where_their_features_do(world: World) -> None:
    store = FeatureStore.open(world.layout.features(world.encoder.name, "train"))
    kernels = Kernels.load(world.layout.kernels(world.encoder.name))
    picture = scatter(kernels, store, {"central": (store.features()[:3], store.labels[:3])})
    assert picture.shown == picture.total == len(store)
    for mark in picture.marks:
        assert f"M{mark.x:g} {mark.y:g}h0" in picture.real[mark.label]
        assert 0 <= mark.x <= 100
        assert 0 <= mark.y <= 100


def test_mistakes_are_those_of_the_probe_the_surest_first(world: World, insight: Insight) -> None:
    test = FeatureStore.open(world.layout.features(world.encoder.name, "test"))
    probe = insight.probe
    assert probe is not None
    assert set(probe.info["validation"]["top1"]) == {"closed_form", "closed_form_clean", "sgd"}
    chances = probe(test.features())
    wrong = chances.argmax(1) != test.labels
    assert insight.wrong == int(wrong.sum())
    assert insight.top1 == pytest.approx(100 * (1 - wrong.double().mean().item()))
    sure = chances.amax(1)[wrong].sort(descending=True).values[:12]
    assert [found.confidence for found in insight.mistakes] == pytest.approx((100 * sure).tolist(), abs=1e-3)
    for found in insight.mistakes:
        row = test.ids.index(found.name)
        assert found.true == test.class_names[int(test.labels[row])] != found.predicted
    assert mistakes(probe, test, Index.open(world.layout.index("test"))) == (insight.wrong, insight.mistakes)


def test_a_page_without_features_has_neither_and_says_so(
    plain: tuple[Layout, Settings], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def never() -> None:
        raise AssertionError("the encoder is loaded for nothing")

    written = write_report(*plain, tmp_path, encoder=never)  # type: ignore[arg-type]  # it must not be called
    assert "In feature space" not in Page(written["report.html"].read_text()).text
    assert (
        "the report has no picture of feature space and no mistakes: there are no features of clpdd_resnet14"
        in caplog.text
    )


def test_a_set_without_images_is_not_looked_at(world: World, central: DistilledSet) -> None:
    nothing = DistilledSet(central.images[:0], central.labels[:0], central.class_names, {"method": "full"})
    assert look_closer(world.layout, world.encoder, "full", {"full": nothing}, QUICK, 0) is None
