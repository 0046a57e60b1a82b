"""All settings of a pipeline: what the sections must satisfy together."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from ..catalogue.elsewhere import elsewhere
from ..catalogue.methods import METHODS, MethodEntry, selects
from ..catalogue.protocols import PROTOCOLS
from ..errors import SettingsError
from .benchmark import BenchmarkSettings
from .cache import CacheSettings
from .dataset import DatasetSettings
from .distill import DistillSettings
from .domains import Precision, Section, once
from .encoder import EncoderOptions
from .evaluate import EvaluateSettings
from .kernels import KernelSettings
from .report import ReportSettings
from .runtime import RuntimeSettings
from .variants import BUILT_IN, MethodVariant, Variant, resolve

__all__ = ["Settings"]


class Settings(Section):
    """Everything in ``params.yaml``."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    dataset: DatasetSettings = DatasetSettings()
    encoders: Annotated[list[str], Field(min_length=1), AfterValidator(once)] = ["clpdd_resnet14"]
    encoder_options: dict[str, EncoderOptions] = {}
    precision: Precision = "auto"
    cache: CacheSettings = CacheSettings()
    kernels: KernelSettings = KernelSettings()
    methods: Annotated[list[str], Field(min_length=1), AfterValidator(once)] = ["clp", "random", "centroid", "full"]
    variants: dict[str, Variant] = {}
    distill: DistillSettings = DistillSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
    report: ReportSettings = ReportSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    @model_validator(mode="before")
    @classmethod
    def _one_precision(cls, values: Any) -> Any:
        """``precision`` is that of every section that has none of its own, so that no stage needs to know of two."""
        if not isinstance(values, dict) or values.get("precision", "auto") not in ("float32", "bfloat16"):
            return values
        own = {name: values.get(name, {}) for name in ("cache", "distill", "evaluate")}
        for name, section in own.items():
            if isinstance(section, dict) and section.get("precision", "auto") == "auto":
                own[name] = {**section, "precision": values["precision"]}
            elif isinstance(section, Section) and getattr(section, "precision", None) == "auto":
                own[name] = section.model_copy(update={"precision": values["precision"]})
        variants = values.get("variants")
        if isinstance(variants, dict):
            own["variants"] = {name: _without_auto(variant) for name, variant in variants.items()}
        return {**values, **own}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._encoders_known()
        self._methods_known()
        for name in self.methods:
            variant = self.variant(name)
            distill, known = variant.settings, METHODS[variant.method]
            _refuse_too_many(name, known, distill.most_per_class, "distill.images_per_class is")
            self._refuse_uncentral(variant, distill.most_per_class, "distill.images_per_class is")
            _refuse_no_ridge(name, variant)
        self._benchmark_known()
        across = [name for name in self.evaluate.protocols if PROTOCOLS[name].across]
        if across and len(self.encoders) == 1:
            raise ValueError(
                f"evaluate.protocols holds {across[0]}, for encoders other than the one distilled with, and encoders "
                f"lists one: list another, or leave {across[0]} out"
            )
        return self

    def _encoders_known(self) -> None:
        joint = {name: own.members for name, own in self.encoder_options.items() if own.members is not None}
        for name, members in joint.items():
            nested = [member for member in members if member in joint]
            if nested:
                raise ValueError(
                    f"encoder_options.{name}.members names {nested[0]!r}, a joint encoder as well: name single ones"
                )
        used = list(dict.fromkeys([*self.encoders, *(m for name in self.encoders for m in joint.get(name, ()))]))
        unused = sorted(set(self.encoder_options) - set(used))
        if unused:
            near = difflib.get_close_matches(unused[0], used, n=1)
            hint = f"did you mean {near[0]}?" if near else f"these are {', '.join(used)}"
            raise ValueError(
                f"encoder_options names {unused[0]!r}, which is neither in encoders nor a member of one there; {hint}"
            )

    def _benchmark_known(self) -> None:
        wanted = self.benchmark
        for key, names in (("encoders", wanted.encoders), ("transfer_to", wanted.transfer_to)):
            strange = [name for name in names if name not in self.encoders]
            if strange:
                raise ValueError(f"benchmark.{key} names {strange[0]!r}, which encoders does not list")
        most, said = max(wanted.images_per_class), "benchmark.images_per_class holds"
        for name in wanted.methods:
            variant = self.variant(name)
            _refuse_too_many(name, METHODS[variant.method], most, said)
            self._refuse_uncentral(variant, most, said)

    def _refuse_uncentral(self, variant: MethodVariant, wanted: int, said: str) -> None:
        """Raise where a method begins with more central images of a class than the stage kernels keeps."""
        known, kept = METHODS[variant.method], self.kernels.nearest
        start = variant.settings.initialisation if known.optimises else known.start
        if start == "centroid" and wanted > kept:
            raise ValueError(
                f"{said} {wanted}, but only kernels.nearest = {kept} central images per class are kept, with which "
                f"{variant.name} begins: raise kernels.nearest to at least {wanted}"
            )

    @property
    def known_methods(self) -> list[str]:
        """Names that ``methods`` may hold."""
        return [*BUILT_IN, *(name for name in self.variants if name not in BUILT_IN)]

    def _methods_known(self) -> None:
        for key, names in (("methods", self.methods), ("benchmark.methods", self.benchmark.methods)):
            for name in names:
                if name not in self.known_methods:
                    near = difflib.get_close_matches(name, self.known_methods, n=1)
                    hint = f"did you mean {near[0]}?" if near else "name it in variants, or take a known one"
                    known = ", ".join(self.known_methods)
                    raise ValueError(f"{key}: unknown method {name!r}; {hint} Known are {known}")
        for name, variant in self.variants.items():
            if not variant.model_fields_set & {"method"} and name not in BUILT_IN:
                raise ValueError(f"variants.{name} needs a method, one of {', '.join(METHODS)}")

    @field_validator("encoders")
    @classmethod
    def _folder_names(cls, names: list[str]) -> list[str]:
        for name in names:
            if not name or name in {".", ".."} or any(c in name for c in "/\\:@ \0"):
                known = elsewhere(name)
                if known is not None:
                    raise ValueError(f"{known.where} calls {name!r} what is {known.name} here: write {known.name}")
                model = f"hf-hub:{name}" if "/" in name and ":" not in name else name
                raise ValueError(
                    f"{name!r} names folders, so it must be free of / \\ : @ and spaces: give it a short name in "
                    f"encoder_options, e.g. encoder_options: {{mine: {{model: {model!r}}}}}, and list that name"
                )
        return names

    @field_validator("variants")
    @classmethod
    def _variant_names(cls, variants: dict[str, Variant]) -> dict[str, Variant]:
        for name in variants:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
                raise ValueError(f"{name!r} names folders: take letters, digits, dots, dashes and underscores")
        return variants

    def options(self, encoder: str) -> EncoderOptions:
        """The options of one encoder, short names resolved. Raises ``SettingsError`` when it lacks weights."""
        return self.encoder_options.get(encoder, EncoderOptions()).completed(encoder)

    def members(self, encoder: str) -> dict[str, EncoderOptions]:
        """The single encoders that one of ``encoders`` is made of, with their options: itself, or those it joins.

        Raises ``SettingsError`` when one lacks weights.
        """
        joined = self.encoder_options.get(encoder, EncoderOptions()).members
        return {name: self.options(name) for name in joined or (encoder,)}

    def refuse_unlisted_encoder(self, name: str) -> None:
        """Raise ``SettingsError`` for a name that ``encoders`` does not have."""
        if name not in self.encoders:
            raise SettingsError(f"encoder {name!r} is not listed in encoders: {', '.join(self.encoders)}")

    def encoder_arguments(self, encoder: str) -> dict[str, Any]:
        """Arguments of ``clpdd.load_encoder``, as JSON values. Raises ``SettingsError`` when one lacks weights."""
        own = {name: found.model_dump(exclude={"members"}) for name, found in self.members(encoder).items()}
        weights = self.encoder_options.get(encoder, EncoderOptions()).members
        if weights is None:
            return {"name": encoder, **own[encoder]}
        return {"name": encoder, "members": {name: {"weight": weights[name], **own[name]} for name in own}}

    def refuse_small_classes(self, class_names: Sequence[str], counts: Sequence[int]) -> None:
        """Raise ``SettingsError`` where a class has fewer training images than one of ``methods`` takes of it.

        Args:
            counts: training images of each class.
        """
        for name in self.methods:
            variant = self.variant(name)
            method, distill = variant.method, variant.settings
            per_class = distill.per_class(class_names)
            if method == "neighbor":
                distill = resolve(distill.neighbor_of, distill).settings
            real = distill.initialisation in ("centroid", "medoids")
            starts = (METHODS[method].optimises or method == "neighbor") and real
            if not (starts or (selects(method) and METHODS[method].images and not METHODS[method].source)):
                continue
            short = [label for label, wanted in enumerate(per_class) if counts[label] < wanted]
            if short:
                first, more = short[0], f" (and {len(short) - 1} more classes)" if len(short) > 1 else ""
                default = max(1, min(self.distill.most_per_class, per_class[first]))
                least = {class_names[label]: int(counts[label]) for label in short[:5]}
                listed = ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in least.items())
                raise SettingsError(
                    f"distill.images_per_class is {per_class[first]} for class {class_names[first]!r}, which has "
                    f"{counts[first]} training images{more}, and the method {name} takes that many real ones: add "
                    f"images, or lower it for them, distill.images_per_class: {{default: {default}, {listed}"
                    f"{', ...' if len(short) > 5 else ''}}}"
                )

    def variant(self, name: str) -> MethodVariant:
        """The method behind a name in ``methods``, and the settings it runs with."""
        return resolve(name, self.distill, self.variants.get(name))


def _without_auto(variant: Any) -> Any:
    """A variant's settings, of which ``precision: auto`` is that of ``distill``."""
    if isinstance(variant, dict) and variant.get("precision") == "auto":
        return {key: value for key, value in variant.items() if key != "precision"}
    return variant


def _refuse_no_ridge(name: str, variant: MethodVariant) -> None:
    known = METHODS[variant.method]
    if selects(variant.method) and "ridge" not in known.unused and not known.source and variant.settings.ridge == 0:
        raise ValueError(
            f"distill.ridge is 0, and {name} needs it above 0: the first image alone fixes nothing; give it one of its "
            f"own, variants: {{{name}: {{method: {variant.method}, ridge: 1.0}}}}"
        )


def _refuse_too_many(name: str, known: MethodEntry, wanted: int, said: str) -> None:
    most = known.most_per_class
    if most and wanted > most:
        raise ValueError(
            f"{said} {wanted}, but {name} chooses at most {most} images per class: lower it, or take another coreset, "
            f"e.g. herding"
        )
