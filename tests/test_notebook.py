"""In a notebook: short words for everything, pictures and tables, and what the commands do as methods."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import clpdd
from clpdd import AugmentSettings, DistillSettings, EvaluateSettings, Workspace
from clpdd.errors import ArtifactError, ResourceError, SettingsError
from clpdd.report.results import Results
from clpdd.runtime.notebook import html_table, optional
from tests.photos import draw_photos

from .conftest import World

QUICK = EvaluateSettings(protocols=["closed_form"], seeds=2, views=2)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, world: World) -> Workspace:
    """Two colours, distilled with two methods."""
    root = tmp_path_factory.mktemp("notebook")
    photos = clpdd.DatasetSettings(name="folder", train=str(draw_photos(root / "photos")), title="colours")
    made = Workspace(root / "run", world.encoder, photos)
    made.distill("clp", DistillSettings(steps=4, validate_every=2, preview_every=2))
    made.distill("full")
    return made


@pytest.fixture(scope="module")
def results(work: Workspace) -> Results:
    found: Results = work.evaluate("clp", "full", settings=QUICK)
    return found


def test_the_package_names_its_public_names_and_nothing_else() -> None:
    assert dir(clpdd) == sorted(clpdd.__all__)
    for name in clpdd.__all__:
        assert getattr(clpdd, name).__name__ == name


def test_settings_show_what_differs_from_the_defaults() -> None:
    assert repr(DistillSettings(steps=20)) == "DistillSettings(steps=20)"
    assert repr(DistillSettings()) == "DistillSettings()"
    shown = DistillSettings(augment=AugmentSettings(flip=0.0))._repr_html_()
    assert "<td>augment.flip</td><td>0.0</td><td>0.5</td>" in shown
    assert "steps" not in shown
    assert DistillSettings()._repr_html_() == "<p>DistillSettings: the defaults</p>"
    assert list(clpdd.Settings(distill=DistillSettings(steps=3)).changed()) == [("distill.steps", 3, 600)]


def test_a_set_is_a_line_of_words_and_a_picture(work: Workspace) -> None:
    made = work.distilled("clp")
    assert repr(made).startswith("DistilledSet(clp: 2 images of 64 pixels, 2 classes, for clpdd_resnet14, validation")
    assert '<img alt="clp: 2 images' in made._repr_html_()
    assert 'src="data:image/png;base64,iVBOR' in made._repr_html_()
    assert "stands for all training images" in work.distilled("full")._repr_html_()
    assert repr(work) == f"Workspace({str(work.layout.root)!r}, clpdd_resnet14, distilled: clp, full)"


def test_a_set_has_its_curves_and_is_a_data_frame(work: Workspace) -> None:
    pytest.importorskip("pandas")
    made = work.distilled("clp")
    assert [step for step, _ in made.curves["validation_top1"]][-1] == 4
    assert work.distilled("full").curves == {}
    frame = made.to_pandas()
    assert list(frame["class_name"]) == ["blue sky", "red"]
    assert frame["image"][0].size == (64, 64)


def test_results_are_the_mapping_they_were_and_a_table(results: Results) -> None:
    pytest.importorskip("pandas")
    assert set(results) == {"clp", "full"}
    assert results["clp"]["closed_form (clean)"] == 100.0
    assert json.loads(json.dumps(results)) == results
    table = results.table
    assert type(table).__name__ == "DataFrame"
    assert list(table["method"]) == ["full", "clp", "clp", "full"]  # the ridge probe's block, then what bounds no other
    own = table[table.method == "clp"]
    assert list(own.share_of_full) == [100.0, 100.0]
    assert own.top1_std.notna().sum() == 1  # a single closed-form probe on the images as they are
    assert repr(results).splitlines()[-1].startswith("the number: clp 100.0 % top-1 (closed_form")
    assert "<td>images as they are</td><td>clp</td>" in results._repr_html_()


def test_without_pandas_the_table_is_of_arrow_and_figures_name_what_to_install(
    results: Results, work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert isinstance(results.table, pa.Table)
    assert results.table.column("method").to_pylist()[0] == "full"
    with pytest.raises(ResourceError, match="pip install pandas"):
        work.distilled("clp").to_pandas()
    for plot in (results.plot, work.distilled("clp").plot):
        with pytest.raises(
            ResourceError, match="plot needs matplotlib, which is not installed: pip install matplotlib"
        ):
            plot()


def test_figures_hold_every_image_and_every_method(results: Results, work: Workspace) -> None:
    pytest.importorskip("matplotlib")
    figure = work.distilled("clp").plot()
    assert [axis.get_title() for axis in figure.axes] == ["blue sky", "red"]
    panels = results.plot().axes
    assert [panel.get_title().split(",")[0] for panel in panels] == ["closed_form", "closed_form"]


def test_methods_do_what_the_commands_do(work: Workspace, results: Results, tmp_path: Path, world: World) -> None:
    page = work.report().read_text(encoding="utf-8")
    assert "colours" in page
    assert "CLP-DD" in page
    probe = work.probe("clp", QUICK, protocol="closed_form", out=tmp_path / "probe.safetensors")
    photos = work.layout.root.parent / "photos" / "red"
    for known in (probe, tmp_path / "probe.safetensors"):
        assert {found.classes for found in work.predict(photos, classifier=known)} == {("red",)}
    work.export("clp", "folder", tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2
    assert work.features("test").features().shape == (4, world.encoder.dim)  # a fifth of 20
    assert work.results() == results


def test_what_is_wrong_is_said(work: Workspace, tmp_path: Path, world: World) -> None:
    with pytest.raises(SettingsError, match="split is 'dev'; it must be one of train, validation, test"):
        work.features("dev")
    with pytest.raises(SettingsError, match="to is 'zip'; it must be one of huggingface, folder"):
        work.export("clp", "zip", tmp_path / "x")
    with pytest.raises(ArtifactError, match="run the stage distill"):
        work.distilled("random")
    empty = Workspace(tmp_path / "run", world.encoder, clpdd.DatasetSettings(max_per_class={"train": 2}))  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="does not exist"):
        empty.results()


def test_tables_escape_what_they_hold() -> None:
    assert html_table(("<a>",), [("<b>",)]).count("&lt;") == 2
    assert optional("json", "x") is json


def test_a_notebook_without_widgets_is_not_warned() -> None:
    script = "import warnings; warnings.simplefilter('error'); import clpdd.runtime.progress"
    done: Any = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 0
