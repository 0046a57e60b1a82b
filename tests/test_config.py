"""Settings: defaults agree with params.yaml, everything wrong is refused by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from clpdd.catalogue.methods import METHODS
from clpdd.config.augment import AugmentSettings
from clpdd.config.cache import CacheSettings
from clpdd.config.dataset import DatasetSettings
from clpdd.config.distill import DistillSettings
from clpdd.config.evaluate import EvaluateSettings
from clpdd.config.loading import load_settings, parse_settings
from clpdd.config.settings import Settings
from clpdd.config.variants import BUILT_IN, MethodVariant, resolve
from clpdd.errors import SettingsError
from clpdd.methods.loading import load_method

PARAMS = Path(__file__).parent.parent / "params.yaml"


def test_params_yaml_holds_every_setting_at_its_default_with_a_comment() -> None:
    # digits are neither mirrored nor cut to their corners; the library's own defaults are the field's
    gentle = {"flip": 0.0, "crop_area": [0.5, 1.0]}
    digits = {"distill": {"augment": gentle}, "evaluate": {"augment": gentle}}
    assert load_settings(PARAMS) == parse_settings(digits)
    known = set()

    def names(model: Any) -> None:
        for name, field in model.model_fields.items():
            known.add(name)
            if hasattr(field.annotation, "model_fields") and name != "encoder_options":
                names(field.annotation)

    names(Settings)
    lines = [line for line in PARAMS.read_text().splitlines() if line.strip() and not line.startswith("#")]
    keys = {line.split(":")[0].strip() for line in lines}
    assert keys == known
    sections = {"augment", "dataset", "max_per_class", "cache", "kernels", "distill", "evaluate", "report", "benchmark"}
    uncommented = [line for line in lines if "#" not in line and line.split(":")[0].strip() not in sections]
    assert not uncommented


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"distil": {}}, "distil: unknown key; did you mean distill?"),
        ({"distill": {"temprature": 1.0}}, "distill.temprature: unknown key; did you mean temperature?"),
        ({"distill": {"augment": {"flipp": 1.0}}}, "distill.augment.flipp: unknown key; did you mean flip?"),
        ({"encoder_options": {"a": {"modle": "x"}}}, "encoder_options.a.modle: unknown key; did you mean model?"),
        ({"distill": {"temperature": -1}}, "distill.temperature: input should be greater than 0 (got -1)"),
        ({"distill": {"temperature": "warm"}}, "distill.temperature: should be a number, or auto (got 'warm')"),
        ({"distill": {"temperature": float("nan")}}, "distill.temperature: input should be a finite number (got nan)"),
        ({"distill": {"steps": 1.5}}, "distill.steps: input should be a valid integer (got 1.5)"),
        ({"distill": {"steps": True}}, "distill.steps: input should be a valid integer (got True)"),
        ({"distill": {"objective": "hinge"}}, "'cross_entropy', 'cosine' or 'mse'"),
        ({"distill": {"augment": {"crop_area": [0.9, 0.1]}}}, "must not exceed the second"),
        ({"cache": {"shard_rows": 1000, "chunk_rows": 300}}, "must be a multiple of chunk_rows (300)"),
        ({"dataset": {"name": "parquet"}}, "train is needed by the dataset parquet"),
        ({"dataset": {"train": "x"}}, "digits brings its own images"),
        ({"dataset": {"validation_fraction": 0.5, "test_fraction": 0.5}}, "must be below 1"),
        ({"encoders": []}, "at least 1 item"),
        ({"encoders": ["a", "a"]}, "holds a name twice"),
        ({"encoders": ["hf-hub:timm/x"]}, "give it a short name in encoder_options"),
        ({"encoders": [".."]}, "names folders"),
        ({"runtime": {"device": "gpu"}}, "runtime.device"),
        ({"encoder_options": {"clpdd_resnet41": {}}}, "did you mean clpdd_resnet14?"),
        ({"evaluate": {"protocols": ["sgd", "sgd"]}}, "holds a name twice"),
        ({"distill": {"images_per_class": 20}}, "raise kernels.nearest to at least 20"),
        (
            {"benchmark": {"methods": ["centroid"], "images_per_class": [20], "peers": {}}},
            "with which centroid begins: raise kernels.nearest to at least 20",
        ),
        ({"methods": ["ridge-greedy"], "distill": {"ridge": 0}}, "ridge-greedy: {method: ridge-greedy, ridge: 1.0}"),
        ({"methods": ["cpl"]}, "cannot be used:\n  methods: unknown method 'cpl'; did you mean clp?"),
        ([1], "must hold a mapping"),
    ],
)
def test_refusals_name_the_key_and_what_is_allowed(values: Any, expected: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_settings(values)
    assert expected in str(refused.value)


def test_central_images_bound_those_methods_alone_that_begin_with_them() -> None:
    wanted = {"images_per_class": [1, 20], "peers": {}}
    parse_settings({"benchmark": wanted | {"methods": ["clp", "herding", "random"]}})
    starts = {"variants": {"central": {"method": "clp", "initialisation": "centroid"}}}
    with pytest.raises(SettingsError, match=r"holds 20, but only kernels\.nearest = 10 .* with which central begins"):
        parse_settings(starts | {"benchmark": wanted | {"methods": ["herding", "central"]}})


def test_a_ridge_of_0_is_free_where_no_method_to_distil_with_needs_one() -> None:
    """Also though a comparison, which need not be run, would have such a method by default."""
    assert parse_settings({"distill": {"ridge": 0}}).distill.ridge == 0


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        parse_settings({"seed": -1, "distill": {"steps": 0}, "evaluate": {"seeds": 0}})
    assert all(key in str(refused.value) for key in ("seed:", "distill.steps:", "evaluate.seeds:"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2\n", "line 2: the key 'seed' stands twice (first on line 1)"),
        ("distill:\n  steps: 1\n  steps: 1\n", "stands twice"),
        ("seed: !!python/object/apply:os.system ['true']\n", "is not plain YAML"),
        ("seed: !custom 1\n", "is not plain YAML"),
        ("seed: [1\n", "is not plain YAML: line 2, column 1: expected"),
        ("seed: 1\n  cache: 2\n", "is not plain YAML: line 2, column 8: mapping values are not allowed here"),
        ("distill: {temperature: .nan}\n", "finite number"),
        ("distill: {temperature: .inf}\n", "finite number"),
        ("? [a]\n: 1\n", "a key must be a plain word"),
        ("a: &a [*a]\n", "is not plain YAML"),
        ("\x00", "is not plain YAML"),
    ],
)
def test_files_that_are_not_plain_settings_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as refused:
        load_settings(path)
    assert expected in str(refused.value)
    assert str(path) in str(refused.value)


def test_binary_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="UTF-8"):
        load_settings(tmp_path / "params.yaml")
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings(tmp_path / "none.yaml")


def test_numbers_may_be_written_as_yaml_users_write_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text('distill: {learning_rate: 1e-3, temperature: 1}\ndataset: {class_names: ["1e3", "2"]}\n')
    settings = load_settings(path)
    assert settings.dataset.class_names == ["1e3", "2"]
    assert settings.distill.learning_rate == 1e-3
    assert settings.distill.temperature == 1.0


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("")
    assert load_settings(tmp_path / "params.yaml") == Settings()


def test_a_variant_changes_what_it_names_and_nothing_else() -> None:
    settings = parse_settings(
        {
            "distill": {"temperature": 0.7, "augment": {"crop_area": [0.5, 1.0]}},
            "variants": {"hot": {"method": "clp", "augment": {"flip": 0.25}}, "lgm": {"steps": 7}},
            "methods": ["hot", "lgm", "clp"],
        }
    )
    assert settings.variant("clp") == MethodVariant("clp", "clp", settings.distill)
    variant = settings.variant("hot")
    method, hot = variant.method, variant.settings
    assert method == "clp"
    assert hot.augment.flip == 0.25
    assert hot.model_copy(update={"augment": settings.distill.augment}) == settings.distill
    assert hot.augment.crop_area == [0.5, 1.0]
    variant = settings.variant("lgm")  # the user's on top of the built-in one
    method, lgm = variant.method, variant.settings
    assert (method, lgm.steps, lgm.learning_rate, lgm.schedule) == ("lgm", 7, 2e-3, "constant")
    assert (lgm.augment.noise, lgm.augment.crop_area, lgm.temperature) == (0.5, [0.5, 1.0], 0.7)
    assert not settings.model_copy().variant("lgm-no-dsa").settings.augment.active


def test_one_precision_is_that_of_every_stage_without_its_own() -> None:
    def of(values: dict[str, object]) -> list[str]:
        found = parse_settings(values)
        return [found.cache.precision, found.variant("clp").settings.precision, found.evaluate.precision]

    assert of({}) == ["auto"] * 3
    assert of({"precision": "bfloat16"}) == ["bfloat16"] * 3
    assert of({"precision": "bfloat16", "cache": {"precision": "float32"}, "evaluate": {"precision": "auto"}}) == [
        "float32",
        "bfloat16",
        "bfloat16",
    ]
    assert of({"precision": "bfloat16", "variants": {"clp": {"precision": "float32"}}})[1] == "float32"
    assert of({"precision": "bfloat16", "variants": {"clp": {"precision": "auto", "steps": 7}}})[1] == "bfloat16"
    assert Settings(precision="bfloat16", cache=CacheSettings(dtype="float32")).cache == CacheSettings(
        dtype="float32", precision="bfloat16"
    )
    with pytest.raises(SettingsError, match=r"precision.*float32.*bfloat16"):
        parse_settings({"precision": "float16"})


def test_every_built_in_variant_is_of_a_known_method() -> None:
    for name in METHODS:
        assert load_method(name).name == name
    for name in BUILT_IN:
        assert resolve(name, Settings().distill).method in METHODS


WORDS = ["no", "yes", "on", "off", "y", "n", "1:30", "2024-01-01", "1_5:2", "=", "<", "nul"]


def test_words_that_yaml_1_1_takes_for_something_else_are_text_with_quotes_and_without(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    plain = ", ".join(WORDS)
    quoted = ", ".join(f'"{word}"' for word in WORDS)
    for names in (plain, quoted):
        path.write_text(
            f"dataset: {{class_names: [{names}]}}\ndistill: {{images_per_class: {{default: 1, no: 5, 1:30: 2}}}}\n"
        )
        settings = load_settings(path)
        assert settings.dataset.class_names == WORDS
        assert settings.distill.images_per_class == {"default": 1, "no": 5, "1:30": 2}


def test_settings_survive_being_written_anew_as_dvc_does(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        'dataset: {class_names: ["no", "yes", "1:30", "7", "null"]}\n'
        'distill: {images_per_class: {default: 1, "no": 5, "7": 2}}\n'
    )
    before = load_settings(path)
    modify_params = pytest.importorskip("dvc.utils.serialize").modify_yaml
    with modify_params(path) as values:
        values["seed"] = 3
    assert '"no"' not in path.read_text()  # the quotes are gone
    after = load_settings(path)
    assert after == before.model_copy(update={"seed": 3})
    assert after.dataset.class_names == ["no", "yes", "1:30", "7", "null"]
    assert after.distill.images_per_class == {"default": 1, "no": 5, "7": 2}


@pytest.mark.parametrize(
    ("text", "told", "mended"),
    [
        (
            "distill: {images_per_class: {default: 1, 10: 3}}",
            'images_per_class.10: must be text, but 10 is a number: put it in quotes, "10"',
            '"10"',
        ),
        (
            "distill: {images_per_class: {default: 1, 010: 3}}",
            'must be text, but 010 is a number: put it in quotes, "010"',
            '"010"',
        ),
        (
            "distill: {images_per_class: {default: 1, 1e3: 3}}",
            'must be text, but 1e3 is a number: put it in quotes, "1e3"',
            '"1e3"',
        ),
        (
            "distill: {images_per_class: {default: 1, true: 3}}",
            'must be text, but true is a truth value: put it in quotes, "true"',
            '"true"',
        ),
        (
            "dataset: {class_names: [2, 0x10, two]}",
            'class_names.1: must be text, but 0x10 is a number: put it in quotes, "0x10"',
            '"0x10"',
        ),
        (
            "dataset: {class_names: [null, a]}",
            'class_names.0: must be text, but null is nothing: put it in quotes, "null"',
            '"null"',
        ),
        (
            "dataset: {title: 2024}",
            'dataset.title: must be text, but 2024 is a number: put it in quotes, "2024"',
            '"2024"',
        ),
        (
            "distill: {augment: {crop: yes}}",
            "crop: must be true or false, and yes is text in YAML 1.2: write true",
            "true",
        ),
        (
            "distill: {decorrelate: off}",
            "decorrelate: must be true or false, and off is text in YAML 1.2: write false",
            "false",
        ),
    ],
)
def test_a_word_that_needs_quotes_is_shown_as_it_is_written_and_the_remedy_works(
    tmp_path: Path, text: str, told: str, mended: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text + "\n")
    with pytest.raises(SettingsError) as refused:
        load_settings(path)
    assert told in str(refused.value)
    word = mended.strip('"') if '"' in mended else {"true": "yes", "false": "off"}[mended]
    text = text.replace("[2,", '["2",')  # the first of two
    path.write_text(text.replace(f"{word}:", f"{mended}:") if f"{word}:" in text else text.replace(word, mended))
    load_settings(path)


@pytest.mark.parametrize(
    ("make", "values", "told"),
    [
        (DistillSettings, {"stepz": 1}, "stepz: unknown key; did you mean steps?"),
        (DistillSettings, {"steps": 0}, "steps: input should be greater than or equal to 1 (got 0)"),
        (EvaluateSettings, {"augment": {"flipp": 0.5}}, "augment.flipp: unknown key; did you mean flip?"),
        (AugmentSettings, {"crop_area": [0.9, 0.1]}, "crop_area is [0.9, 0.1], but the first number must not exceed"),
        (DatasetSettings, {"name": "digts"}, "name: unknown dataset 'digts'; did you mean digits?"),
        (DatasetSettings, {"name": "folder", "train": 3}, "train: input should be a valid string (got 3)"),
        (DatasetSettings, {"name": "folder", "train": ["a", 3]}, "train.1: input should be a valid string (got 3)"),
        (CacheSettings, {"dtype": "float8"}, "dtype: input should be 'float16' or 'float32' (got 'float8')"),
        (Settings, {"methods": ["cpl"]}, "methods: unknown method 'cpl'; did you mean clp?"),
    ],
)
def test_wrong_settings_from_python_are_refused_in_the_words_of_the_file(make: Any, values: Any, told: str) -> None:
    for how in (make, lambda **given: make.model_validate(given)):
        with pytest.raises(SettingsError) as refused:
            how(**values)
        assert str(refused.value).startswith(f"{make.__name__} has settings that cannot be used:\n  {told}")
        assert "pydantic" not in str(refused.value)
    section = {
        DistillSettings: "distill",
        EvaluateSettings: "evaluate",
        DatasetSettings: "dataset",
        CacheSettings: "cache",
    }
    if make in section:
        with pytest.raises(SettingsError) as refused:
            parse_settings({section[make]: values})
        assert f"  {section[make]}.{told}" in str(refused.value)


MOVED = {
    "cache.workers": ("runtime.workers", 2),
    "distill.checkpoint_every_seconds": ("runtime.checkpoint_every_seconds", 30.0),
    "distill.checkpoint_every_steps": ("runtime.checkpoint_every_steps", 7),
    "evaluate.random_draws": ("distill.random_draws", 3),
}


@pytest.mark.parametrize("old", MOVED)
def test_a_key_of_an_earlier_version_is_refused_with_where_it_went_and_that_works(old: str, tmp_path: Path) -> None:
    (section, key), (new, value) = old.split("."), MOVED[old]
    told = f"{old}: moved to {new}; set it there"
    (tmp_path / "params.yaml").write_text(f"{section}: {{{key}: {value}}}\n")
    with pytest.raises(SettingsError, match=re.escape(told)):
        load_settings(tmp_path / "params.yaml")
    with pytest.raises(SettingsError, match=re.escape(told)):
        parse_settings({section: {key: value}})
    owner = {"cache": CacheSettings, "distill": DistillSettings, "evaluate": EvaluateSettings}[section]
    with pytest.raises(SettingsError, match=re.escape(f"moved to {new}; set it there")):
        owner(**{key: value})

    target, _, field = new.partition(".")
    (tmp_path / "params.yaml").write_text(f"{target}: {{{field}: {value}}}\n")
    assert getattr(getattr(load_settings(tmp_path / "params.yaml"), target), field) == value


def test_a_variant_is_told_where_a_key_of_distill_went() -> None:
    with pytest.raises(SettingsError, match=r"variants\.a\.checkpoint_every_steps: moved to runtime\.checkpoint_every"):
        parse_settings({"variants": {"a": {"method": "clp", "checkpoint_every_steps": 7}}})
