"""The stage ``index``: labelled images to a Parquet index of each split."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.dataset import DatasetSettings
from ..datasets.build import Enough, open_source, write_index
from ..datasets.listing import BadImages
from ..datasets.sources.loading import module_of
from ..datasets.watch import look
from ..storage.files import remove
from ..storage.layout import SPLITS, Layout
from ..storage.provenance import code_digest
from ..storage.work import exclusive, fingerprint

if TYPE_CHECKING:
    from .project import Project, Run

__all__ = ["index_images", "run_index"]

_FILES = ("summary.json", *(f"{split}.parquet" for split in SPLITS))


def run_index(project: Project) -> None:
    """Index the images of a project.

    Raises ``DataError`` and ``ResourceError`` as ``index_images`` does, and ``SettingsError`` where a method takes more
    images of a class than there are, or another settings file made the indexes with other settings: then the indexes
    stay as they were.
    """
    project.check_encoders()
    layout, settings, run = project.layout, project.settings, project.run
    with exclusive(layout.work, "index", run.wait):
        project.take("index", "", layout.index("train"), "seed", "dataset")
        enough, again = settings.refuse_small_classes, project.refuse_small_classes
        index_images(settings.dataset, settings.seed, layout, run, enough, again)


def index_images(
    dataset: DatasetSettings,
    seed: int,
    layout: Layout,
    run: Run,
    enough: Enough | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Make the indexes, or publish them again where the images and all that decides them are as they were.

    Args:
        dataset: whose paths are relative to the working folder.
        seed: of the splits and draws.
        enough: see ``datasets.build.write_index``.
        check: takes the training split's index before indexes that were made earlier are published again.

    Raises:
        DataError, ResourceError: as ``datasets.build.open_source`` and ``write_index`` do.
        BusyError: another live process makes them.
    """
    home = layout.index("train").parent
    bad = BadImages(dataset.bad_images == "skip")
    source = open_source(dataset, Path("."), bad)
    images = source.digest()
    if reading := dataset.watch == "bytes":  # sizes and times of the files tell nothing
        images = look(dataset, Path("."), layout.made).digest() or images
    record = fingerprint(
        settings=dataset.model_dump(mode="json", exclude={"watch"}),  # which decides no byte
        seed=seed,
        images=images,
        home=os.path.relpath(os.path.realpath(home)),  # files are named relative to it
        code=code_digest("clpdd.stages.index", module_of(dataset.name)),
    )
    with run.folder("index", "splits", record) as work:
        partial = (work.path if reading else layout.work / "index") / "partial"

        def make() -> None:
            write_index(source, dataset, seed, work.out, bad, partial, enough, home)
            remove(partial)

        if images is None:  # nothing tells whether they are what they were
            work.forget()
        targets = {name: home / name for name in _FILES}
        found = work.out / "train.parquet"
        work.produce(make, targets, together=True, check=None if check is None else lambda: check(found))
