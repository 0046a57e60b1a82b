"""Presets: a dataset and an encoder by one name, ``imagenet1k-dinov2``, written into ``params.yaml``.

``clpdd/presets/datasets`` and ``clpdd/presets/encoders`` hold the halves, fragments of ``params.yaml``; each can stand
with each. ``clpdd/presets/published`` has, under the same names, those encoders that LGM's published code takes, as it
takes them. All halves of a kind set the same keys, so that one preset leaves nothing of another behind. They go into
the file itself because DVC reads the encoders and methods of its matrix from there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..config.editing import edited
from ..config.loading import load_settings, parse_settings
from ..config.merging import merged
from ..config.reading import read_yaml
from ..config.settings import Settings
from ..errors import SettingsError
from ..runtime.tables import aligned
from ..storage.files import write_bytes
from .cost import ASSUMED_IN_WORDS, duration, estimate, published

__all__ = ["PRESETS", "apply_preset", "preset", "preset_names", "preset_table"]

PRESETS = Path(__file__).parents[1] / "presets"
"""Folder of the presets that come with the package."""

_WHOLE = ("encoder_options",)  # a mapping by names of encoders: those of other presets must go


def preset_names(folder: Path | str = PRESETS) -> list[str]:
    """Every ``DATASET-ENCODER``. Raises ``SettingsError`` when there are none in ``folder``."""
    datasets, encoders = _halves(Path(folder), "datasets"), _halves(Path(folder), "encoders")
    return [f"{dataset}-{encoder}" for dataset in datasets for encoder in encoders]


def _halves(folder: Path, kind: str) -> list[str]:
    found = sorted(path.stem for path in (folder / kind).glob("*.yaml"))
    if not found:
        raise SettingsError(
            f"{folder / kind} holds no presets: correct --presets, or leave it out for those that come along"
        )
    return found


def preset(name: str, folder: Path | str = PRESETS, published: bool = False) -> dict[str, Any]:
    """The settings that a preset fixes, nested as in ``params.yaml``. Raises ``SettingsError`` for an unknown name.

    Args:
        published: the encoder as LGM's published code takes it, to compare with the tables of papers that use it.
    """
    folder = Path(folder)
    dataset, _, encoder = name.rpartition("-")
    datasets, encoders = _halves(folder, "datasets"), _halves(folder, "encoders")
    if dataset not in datasets or encoder not in encoders:
        raise SettingsError(
            f"there is no preset {name!r}: a preset is DATASET-ENCODER, with the datasets {', '.join(datasets)} and "
            f"the encoders {', '.join(encoders)}"
        )
    kind = "published" if published else "encoders"
    if encoder not in _halves(folder, kind):
        raise SettingsError(
            f"LGM's published code has no {encoder}, so --published has none: take one of "
            f"{', '.join(_halves(folder, kind))}, or leave --published out"
        )
    halves = [folder / "datasets" / f"{dataset}.yaml", folder / kind / f"{encoder}.yaml"]
    one, other = (read_yaml(path.read_text(encoding="utf-8")) for path in halves)
    return merged(one, other, _WHOLE)


def preset_table(folder: Path | str = PRESETS) -> str:
    """Datasets by encoders: how long the encoder's passes of every preset take, at ``cost.ASSUMED``."""
    folder = Path(folder)
    datasets, encoders = _halves(folder, "datasets"), _halves(folder, "encoders")
    rows = [["", "classes", "images", "images per class", *encoders]]
    for dataset in datasets:
        row: list[str] = []
        for encoder in encoders:
            settings = parse_settings(preset(f"{dataset}-{encoder}", folder))
            size, cost = published(settings), estimate(settings)
            if not row:
                counts = [f"{size.classes:,}", f"{size.train + size.test:,}"] if size else ["?", "?"]
                row = [dataset, *counts, str(settings.distill.most_per_class)]
            row.append(duration(sum(cost.seconds.values())) if cost else "?")
        rows.append(row)
    names = preset_names(folder)
    example = "imagenet1k-dinov2" if "imagenet1k-dinov2" in names else names[0]  # the one that all know
    return "\n".join(
        [
            "Time of the encoder's passes in all stages, by dataset and encoder; decoding and probes come on top:",
            "",
            aligned(rows, left=1),
            "",
            f"Assumed: {ASSUMED_IN_WORDS}. ?: unknown before the images are there.",
            f"A preset is DATASET-ENCODER, as in: clpdd preset {example} --root FOLDER",
        ]
    )


def apply_preset(
    name: str, params: Path, folder: Path | str = PRESETS, root: str | None = None, published: bool = False
) -> Settings:
    """Write a preset into a settings file, whole or not at all; other settings and all comments stay.

    Args:
        published: the encoder as LGM's published code takes it.
        root: ``dataset.root`` instead of the preset's; a relative one is relative to the working folder.

    Raises:
        SettingsError: unknown preset, a file that is not sound, or a preset that does not go with the rest of it.
    """
    load_settings(params)
    changes = preset(name, folder, published)
    if root is not None:
        if not os.path.samefile(params.parent, os.curdir) and not root.startswith("~"):
            root = os.path.abspath(root)  # paths in the file are relative to the file's folder
        changes = merged(changes, {"dataset": {"root": root}}, _WHOLE)
    before = params.read_text(encoding="utf-8")
    after = edited(before, changes, _WHOLE)
    values = read_yaml(after)
    if values != merged(read_yaml(before) or {}, changes, _WHOLE):
        raise SettingsError(f"{params} cannot be edited without changing more than {name} asks for: write it plainly")
    parse_settings(values, source=f"{params} with the preset {name}")
    write_bytes(params, after.encode())
    return load_settings(params)
