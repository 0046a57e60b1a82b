"""The stage ``index``: labelled images to a Parquet index of each split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets.build import open_source, write_index
from ..datasets.listing import BadImages
from ..datasets.sources.loading import module_of
from ..datasets.watch import look
from ..storage.files import remove
from ..storage.layout import SPLITS
from ..storage.provenance import code_digest
from ..storage.work import exclusive, fingerprint

if TYPE_CHECKING:
    from .project import Project

__all__ = ["run_index"]

_FILES = ("summary.json", *(f"{split}.parquet" for split in SPLITS))


def run_index(project: Project) -> None:
    """Index the images of a project. Where they and all that decides the indexes are as they were, publish these again.

    Raises ``DataError`` and ``ResourceError`` as ``datasets.build.open_source`` and ``write_index`` do, and
    ``SettingsError`` where a method takes more images of a class than there are, or another settings file made the
    indexes with other settings.
    """
    project.check_encoders()
    layout, settings, run = project.layout, project.settings, project.run
    home = layout.index("train").parent
    with exclusive(layout.work, "index", run.wait):
        project.take("index", "", layout.index("train"), "seed", "dataset")
        bad = BadImages(settings.dataset.bad_images == "skip")
        source = open_source(settings.dataset, Path("."), bad)
        images = source.digest()
        if reading := settings.dataset.watch == "bytes":  # sizes and times of the files tell nothing
            images = look(settings.dataset, Path("."), layout.made).digest() or images
        record = fingerprint(
            settings=settings.dataset.model_dump(mode="json", exclude={"watch"}),  # which decides no byte
            seed=settings.seed,
            images=images,
            home=os.path.relpath(os.path.realpath(home)),  # files are named relative to it
            code=code_digest("clpdd.stages.index", module_of(settings.dataset.name)),
        )
        with run.folder("index", "splits", record) as work:
            partial = (work.path if reading else layout.work / "index") / "partial"

            def make() -> None:
                enough = settings.refuse_small_classes
                write_index(source, settings.dataset, settings.seed, work.out, bad, partial, enough, home)
                remove(partial)

            if images is None:  # nothing tells whether they are what they were
                work.forget()
            targets = {name: home / name for name in _FILES}
            made = work.produce(make, targets, together=True)
    if not made:  # else they were refused before they were written
        project.refuse_small_classes()
