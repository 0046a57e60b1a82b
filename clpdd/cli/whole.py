"""The command ``run``: every stage, from photos to the report. It imports what it needs when it runs."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from ..errors import SettingsError
from .arguments import PARAMS, options_of_encoder
from .photos import settings_for, with_encoder, write_settings

if TYPE_CHECKING:
    from ..config.settings import Settings
    from ..stages.project import Project

__all__ = ["run"]

log = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> None:
    settings = _settings(options)  # refused before torch is imported, and before anything is written
    from ..report.table import result_table
    from ..stages.order import run_all
    from ..stages.project import open_project

    root = options.data if options.out is None else options.out
    project: Project = open_project(settings, root)
    project.check_encoders()
    if options.photos is not None or options.encoder is not None or options.out is not None:
        write_settings(settings, root / PARAMS)
    run_all(project)
    print(result_table(project.layout))


def _settings(options: argparse.Namespace) -> Settings:
    from ..config.loading import load_settings

    used = options.named or options.photos is None
    if used and not options.named and not PARAMS.exists():
        raise SettingsError(
            "there is no params.yaml here: name a folder of photos, as in `clpdd run photos/`, or pass --params FILE"
        )
    if not used and PARAMS.exists():
        log.info("%s is not used, since photos are named: pass --params %s to take its settings", PARAMS, PARAMS)
    encoder, given = options.encoder, options_of_encoder(options)
    if not used:
        return settings_for(options.photos, encoder, None, given)
    # Before the file is checked, which may hold options of this encoder alone, and again, since paths on the line are
    # relative to the working folder, and those of a file to its own.
    base = load_settings(options.params, change=lambda values: with_encoder(values, encoder, given))
    return settings_for(options.photos, encoder, base, given)
