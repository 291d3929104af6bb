"""Publishing to a folder, where a link named `champion` also leads to the current model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fim_core.atomic import flush, new_folder, read_json, replacing, write_json
from fim_core.errors import FimError
from fim_core.publishing.release import RECORD, Release, require_same_experiment

_LINK = "champion"


def publish_to_folder(release: Release, folder: Path) -> bool:
    """Make a release the champion of a folder; returns whether anything had to be changed.

    Raises:
        FimError: the folder belongs to another experiment, or something else is in the way.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = read_json(folder / RECORD) if (folder / RECORD).exists() else None
    require_same_experiment(record, release, str(folder))
    link = folder / _LINK
    if os.path.lexists(link) and not link.is_symlink():
        raise FimError(f"{link} exists and is not a link, so it is not replaced. Move it away.")
    copied = _copy_model(release, folder)
    if not copied and record == release.record and link.is_symlink() and os.readlink(link) == release.name:
        return False
    with replacing(link) as scratch:
        scratch.symlink_to(release.name)
    write_json(folder / RECORD, release.record)
    flush(folder)
    return True


def _copy_model(release: Release, folder: Path) -> bool:
    final = folder / release.name
    if final.is_dir():
        if any(
            not (final / file).is_file() or (final / file).stat().st_size != size
            for file, size in release.files.items()
        ):
            raise FimError(f"{final} was changed after it was published. Move it away.")
        return False
    with new_folder(final) as scratch:
        for file in release.files:
            (scratch / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(release.folder / file, scratch / file)
    return True
