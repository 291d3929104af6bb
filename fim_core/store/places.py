"""Paths that a store owns, its marker, and errors of the disk that it is on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fim_core.atomic import flush, read_json, write_json
from fim_core.errors import DamagedFile, FimError, is_disk_full

MARKER = "fim-store.json"

ASSETS = (
    "raw_completions",
    "fim_prompts",
    "tokenized_dataset",
    "trained_checkpoint",
    "evaluation_report",
    "champion_model",
)
"""Every asset that a store holds."""

_MARK = {"fim_store": 1}
"""Content of the marker; the number is the version of the folder structure."""

_ASSET = f"(?:{'|'.join(ASSETS)})"
VERSION_PATTERN = "[0-9a-f]{16}"
_SCRATCH = r"-\d+-[0-9a-f]{8}"
_EXPERIMENT = "[A-Za-z0-9][A-Za-z0-9_.-]*"
_PLACES = {
    "version": rf"{_ASSET}/{VERSION_PATTERN}",
    "link": rf"{_ASSET}/(?:current|by_experiment/{_EXPERIMENT})",
    "withdrawn": rf"champion_model/withdrawn/{_EXPERIMENT}\.json",
    "draft": rf"tmp/(?:{_ASSET}-{VERSION_PATTERN}{_SCRATCH}|removed-[0-9a-f]{{16}})",
    "work": rf"work/{_ASSET}/{VERSION_PATTERN}",
    "batch": rf"batch_cache/{_ASSET}/(?:[0-9a-f]{{64}}\.arrow|\.[0-9a-f]{{64}}\.arrow{_SCRATCH})",
    "download": rf"downloads/(?:[0-9a-f]{{64}}|\.[0-9a-f]{{64}}{_SCRATCH})",
    "lock": rf"locks/{_ASSET}-{VERSION_PATTERN}",
    "check": rf"checks/{_ASSET}/{VERSION_PATTERN}-{VERSION_PATTERN}\.json",
    "marker": rf"{re.escape(MARKER)}|\.{re.escape(MARKER)}{_SCRATCH}",
}
"""Kinds of paths that a store owns, as patterns relative to its root."""

_FOLDERS = rf"{_ASSET}(?:/by_experiment|/withdrawn)?|tmp|locks|downloads|(?:work|batch_cache|checks)(?:/{_ASSET})?"


class StoreFolder:
    """The root folder of a store, and the rules about which paths in it belong to the store."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def has_mark(self) -> bool:
        """Whether the folder is marked as a store."""
        try:
            return read_json(self.root / MARKER) == _MARK
        except (FileNotFoundError, DamagedFile):
            return False

    def require_mark(self) -> None:
        """Require that the folder is marked as a store, since nothing is deleted in any other folder.

        Raises:
            FimError: it is not.
        """
        if not self.has_mark():
            raise FimError(
                f"{self.root} has no valid {MARKER}, which marks a folder of artifacts, so nothing in it is deleted. "
                "Name the folder of the artifacts with --storage, --experiment or FIM_STORAGE. If it is this one, move "
                f"everything that is not an artifact out of it, or move the artifacts ({', '.join(ASSETS)}) into a new "
                "folder; the next run of the pipeline there writes the file."
            )

    def owns(self, path: Path, kind: str | None = None) -> bool:
        """Whether a path is one that the store uses, and no folder on the way from the root to it is a symbolic link.

        Args:
            kind: the kind of path, a key of `_PLACES`; None for any.
        """
        if not path.is_relative_to(self.root):
            return False
        below = path.relative_to(self.root).as_posix()
        patterns = _PLACES.values() if kind is None else (_PLACES[kind],)
        parents = path.parents[: len(path.relative_to(self.root).parts) - 1]
        return any(re.fullmatch(pattern, below) for pattern in patterns) and not any(map(Path.is_symlink, parents))

    def folder(self, *names: str) -> Path:
        """The path of a folder of the store, which is created if missing; the root of a new store gets its marker.

        Raises:
            FimError: a symbolic link is in its place.
            OSError: it cannot be created.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(self.root / MARKER) and all(map(self._is_own, self._contents())):
            write_json(self.root / MARKER, _MARK)
            flush(self.root)
        place = self.root
        for name in names:
            place = place / name
            if place.is_symlink():
                raise FimError(f"{place} is a symbolic link, and a store holds its folders itself. Remove the link.")
            place.mkdir(exist_ok=True)
        return place

    def owned_folders(self, kind: str) -> list[Path]:
        """Existing folders of a kind (`draft`, `work` or `download`), sorted."""
        depth = {"draft": "tmp/*", "work": "work/*/*", "download": "downloads/*"}[kind]
        found = sorted(self.root.glob(depth))
        return [path for path in found if self.owns(path, kind) and path.is_dir() and not path.is_symlink()]

    @contextmanager
    def reporting_full_disk(self, asset: str) -> Iterator[None]:
        """Replace errors of a full disk, while files of an asset are written, by one that says so.

        Raises:
            FimError: the disk is full.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, FimError) or not is_disk_full(error):
                raise
            raise FimError(
                f"The disk is full while writing {asset} in {self.root}. Free some space; `fim gc` helps."
            ) from error

    @contextmanager
    def reporting_unwritable(self, asset: str) -> Iterator[None]:
        """Replace errors of the file system, while files of an asset are written, by one that says what to do.

        Raises:
            FimError: the folder cannot be written, or the disk is full.
        """
        try:
            with self.reporting_full_disk(asset):
                yield
        except OSError as error:
            raise FimError(
                f"{self.root} cannot be written ({error.strerror}). Make it writable, or name another folder: "
                "`storage` in the experiment, or FIM_STORAGE."
            ) from error

    def _contents(self) -> Iterator[Path]:
        """Every path in the root, without the contents of versions, drafts and work folders."""
        pending = [self.root]
        while pending:
            for path in pending.pop().iterdir():
                yield path
                if self._is_folder(path):
                    pending.append(path)

    def _is_own(self, path: Path) -> bool:
        # ext4 makes lost+found in the root of every volume.
        return self._is_folder(path) or self.owns(path) or path == self.root / "lost+found"

    def _is_folder(self, path: Path) -> bool:
        below = path.relative_to(self.root).as_posix()
        return re.fullmatch(_FOLDERS, below) is not None and path.is_dir() and not path.is_symlink()
