"""Where a named dataset lies: folders looked for by their true names, refusals that say what was looked for."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import scipy.io

from ...config.dataset import DatasetSettings
from ...errors import DataError
from ..listing import File, Files, check_class_names, max_file_bytes

__all__ = [
    "find",
    "listed",
    "matlab",
    "names_of",
    "read_lines",
    "read_table",
    "root_of",
    "safe_name",
    "unlike",
    "whole",
]


def root_of(settings: DatasetSettings, base: Path) -> Path:
    """``dataset.root`` as a folder that exists. Raises ``DataError``."""
    root = base / Path(settings.root or "").expanduser()
    if not root.is_dir():
        kind = "is a file, but a folder is needed" if root.exists() else "does not exist"
        raise DataError(f"dataset.root: {root} {kind}: give the folder that the files of {settings.name} lie in")
    return root


def find(root: Path, names: Iterable[str]) -> Path | None:
    """The first of ``names`` below ``root`` that exists."""
    return next((root / name for name in names if (root / name).exists()), None)


def unlike(settings: DatasetSettings, root: Path, looked: Sequence[str]) -> DataError:
    """The error for a folder that holds none of a dataset's layouts."""
    held = sorted(entry.name for entry in root.iterdir())[:8]
    return DataError(
        f"dataset.root: {root} does not look like {settings.name}. Looked for {'; or '.join(looked)}. "
        f"The folder holds {', '.join(held) or 'nothing'}"
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank. Raises ``DataError``."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: it is part of the dataset, unpack it again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with a header that has ``columns``. Raises ``DataError``, naming the row."""
    reader = csv.DictReader(io.StringIO("\n".join(read_lines(path))))
    lacking = [name for name in columns if name not in (reader.fieldnames or [])]
    if lacking:
        raise DataError(f"{path} has no column {lacking[0]!r}; its columns: {', '.join(reader.fieldnames or [])}")
    rows = list(reader)
    for number, row in enumerate(rows, start=2):
        if any(row[name] is None for name in columns):
            raise DataError(f"{path}, line {number}: fewer fields than the header has")
    return rows


def whole(text: str) -> int | None:
    """A whole number as tables hold it, ``1`` or ``1.0`` (what pandas makes of it), ``None`` of anything else."""
    text = text.strip()
    digits, _, rest = text.partition(".")
    return int(digits) if digits.isascii() and digits.isdigit() and not rest.strip("0") else None


def matlab(source: Path | bytes, where: str, name: str) -> Any:
    """The variable ``name`` of a MAT file. Numbers and text alone: nothing in one is run. Raises ``DataError``."""
    try:
        found = scipy.io.loadmat(
            io.BytesIO(source) if isinstance(source, bytes) else str(source), squeeze_me=True, variable_names=[name]
        )
        return found[name]
    except FileNotFoundError:
        raise DataError(f"{where} does not exist: it is part of the dataset, download it again") from None
    except KeyError:
        raise DataError(f"{where} holds no variable {name!r}: it is another file, or damaged") from None
    except Exception as error:  # scipy's reader raises whatever damaged bytes lead it to
        raise DataError(f"{where} is no MAT file that can be read ({error}): download it again") from error


def safe_name(name: str, where: str) -> str:
    """``name`` if it is a relative path that stays where it is. Raises ``DataError``."""
    if not name or "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        raise DataError(f"{where}: the name {name!r} leaves the folder of the dataset: that is refused")
    return name


def listed(
    root: Path, rows: Iterable[tuple[str, int]], settings: DatasetSettings, groups: Sequence[str] | None = None
) -> Files:
    """Files below ``root`` by ``(name, label)``, in the order given."""
    pairs, text = list(rows), root.as_posix()
    files = [File(text, safe_name(name, text)) for name, _ in pairs]
    return Files(files, [label for _, label in pairs], max_file_bytes(settings.max_pixels), groups)


def names_of(settings: DatasetSettings, own: Sequence[str]) -> list[str]:
    """``dataset.class_names``, as many as there are classes, or the dataset's own. Raises ``DataError``."""
    if settings.class_names is None:
        return check_class_names(own, settings.name)
    if len(settings.class_names) != len(own):
        raise DataError(
            f"dataset.class_names has {len(settings.class_names)} names, but {settings.name} has {len(own)} classes"
        )
    return check_class_names(settings.class_names, "dataset.class_names")
