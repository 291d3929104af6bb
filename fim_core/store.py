"""Where artifacts lie: content-addressed, immutable, published whole or not at all.

    .fim/fim-store.json                 marks the folder as a store; without it nothing is collected
    .fim/<asset>/<version>/…            what the stage wrote, and manifest.json
    .fim/<asset>/current                link to the newest version
    .fim/<asset>/by_experiment/<name>   link to the version that this experiment uses
    .fim/tmp/<draft>/lease.json, new/   a version that is being written, and by whom
    .fim/work/<asset>/<version>/        what an unfinished attempt left, for the next one to resume from
    .fim/locks/<asset>-<version>        locked while somebody makes the version
    .fim/batch_cache/<asset>/…          results of batches of rows, to be used again (see batch_cache.py)

A version is the hash of everything that decides the content (inputs' versions, options, code), so that the same work
is never done twice and a checkpoint names every byte it came from.

The root may be any folder, also one that holds other files. So nothing is replaced or deleted unless its place is one
that the store uses itself (`_PLACES`) and no symbolic link leads there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fim_core.atomic import exchange, flush, flush_tree, read_json, read_json_as, replacing, write_json
from fim_core.errors import DamagedFile, FimError, is_disk_full
from fim_core.integrity import digests_of, find_damage, seal, unseal
from fim_core.locks import acquire, is_locked, open_lock
from fim_core.provenance import commit, library_versions

_log = logging.getLogger(__name__)

MARKER = "fim-store.json"
MANIFEST = "manifest.json"
LEASE = "lease.json"

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
"""Content of the marker; the number counts changes of the layout."""

_ASSET = f"(?:{'|'.join(ASSETS)})"
_VERSION = "[0-9a-f]{16}"
_SCRATCH = r"-\d+-[0-9a-f]{8}"
_EXPERIMENT = "[A-Za-z0-9][A-Za-z0-9_.-]*"
_PLACES = {
    "version": rf"{_ASSET}/{_VERSION}",
    "link": rf"{_ASSET}/(?:current|by_experiment/{_EXPERIMENT})",
    "withdrawn": rf"champion_model/withdrawn/{_EXPERIMENT}\.json",
    "draft": rf"tmp/(?:{_ASSET}-{_VERSION}{_SCRATCH}|removed-[0-9a-f]{{16}})",
    "work": rf"work/{_ASSET}/{_VERSION}",
    "batch": rf"batch_cache/{_ASSET}/(?:[0-9a-f]{{64}}\.arrow|\.[0-9a-f]{{64}}\.arrow{_SCRATCH})",
    "lock": rf"locks/{_ASSET}-{_VERSION}",
    "check": rf"checks/{_ASSET}/{_VERSION}-{_VERSION}\.json",
    "marker": rf"{re.escape(MARKER)}|\.{re.escape(MARKER)}{_SCRATCH}",
}
"""The places of a store, by what lies there, as patterns of paths below its root."""

_FOLDERS = rf"{_ASSET}(?:/by_experiment|/withdrawn)?|tmp|locks|(?:work|batch_cache|checks)(?:/{_ASSET})?"


def version_of(inputs: Mapping[str, str], config: Mapping[str, Any], code: str) -> str:
    """The version (16 hex digits of SHA-256) of what `code` makes of `inputs` under `config`.

    Args:
        inputs: name of each input to its version or content hash.
        config: the options that decide the content, JSON-serialisable.
        code: version of the code that does the work.
    """
    content = json.dumps({"inputs": dict(inputs), "config": config, "code": code}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def digest(value: Any) -> str:
    """Hash of a JSON-serialisable value, 16 hex digits; for manifests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Artifact:
    """A published version of an asset."""

    asset: str
    version: str
    path: Path
    manifest: dict[str, Any]

    @property
    def counts(self) -> dict[str, Any]:
        """What the stage counted while it made this artifact."""
        return self.manifest["counts"]

    def find_damage(self) -> str | None:
        """Which file is missing or has changed since the artifact was published; None if all are whole.

        Each file is read once in a process.
        """
        return find_damage(self.path, self.manifest["files"])

    def require_whole(self) -> Artifact:
        """This artifact, if its files are as they were published.

        Raises:
            DamagedFile: they are not.
        """
        if (damage := self.find_damage()) is not None:
            folder = self.path.resolve()
            raise DamagedFile(
                f"{self.asset} {self.version} is damaged: {damage} ({folder}). `fim verify --delete --storage "
                f"{folder.parents[1]}` removes it, and the next run makes it again."
            )
        return self


@dataclass
class Draft:
    """A version being written: put files under `path`, and what you counted into `counts`."""

    path: Path
    counts: dict[str, Any]


@dataclass(frozen=True)
class Lease:
    """Who writes a draft.

    Attributes:
        pid, host: of the process.
        inputs: version of each input, which must not be collected meanwhile.
    """

    pid: int
    host: str
    inputs: dict[str, str]


class Store:
    """The folder of all artifacts. Safe against kills at any moment and against two writers of one version."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def find(self, asset: str, version: str) -> Artifact | None:
        """The published artifact, or None."""
        artifact = _read(asset, self.root / asset / version)
        return artifact if artifact is not None and artifact.version == version else None

    def has_mark(self) -> bool:
        """Whether the folder is marked as a store."""
        try:
            return read_json(self.root / MARKER) == _MARK
        except (FileNotFoundError, DamagedFile):
            return False

    def require_mark(self) -> None:
        """Go on in a folder that is marked as a store, from which things may be deleted.

        Raises:
            FimError: it is not.
        """
        if not self.has_mark():
            raise FimError(
                f"{self.root} has no valid {MARKER}, which marks a folder of artifacts, so nothing in it is deleted. "
                "Name the folder of the artifacts with --storage, --experiment or FIM_STORAGE. If it is this one, move "
                f"all that is not an artifact out of it, or the artifacts ({', '.join(ASSETS)}) into a new folder; the "
                "next run of the pipeline there writes the file."
            )

    def owns(self, path: Path, kind: str | None = None) -> bool:
        """Whether a path is a place that the store itself uses, reached through no symbolic link.

        Args:
            kind: which kind of place, a key of `_PLACES`; None for any.
        """
        if not path.is_relative_to(self.root):
            return False
        below = path.relative_to(self.root).as_posix()
        patterns = _PLACES.values() if kind is None else (_PLACES[kind],)
        parents = path.parents[: len(path.relative_to(self.root).parts) - 1]
        return any(re.fullmatch(pattern, below) for pattern in patterns) and not any(map(Path.is_symlink, parents))

    def folder(self, *names: str) -> Path:
        """A folder of the store, made if need be; the root of a new store gets its marker.

        Raises:
            FimError: a symbolic link is in its place.
            OSError: it cannot be made.
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

    def _contents(self) -> Iterator[Path]:
        """All that is in the root, without what is inside versions, drafts and work folders."""
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

    def current(self, asset: str, experiment: str | None = None) -> Artifact:
        """The newest artifact of an asset, or the one that an experiment uses.

        Raises:
            FimError: it has not been made yet.
            DamagedFile: its manifest is damaged.
        """
        if (artifact := self.find_current(asset, experiment)) is None:
            whose = f" of experiment {experiment}" if experiment else ""
            raise FimError(f"There is no {asset}{whose} in {self.root} yet. Materialize {asset} first.")
        return artifact

    def find_current(self, asset: str, experiment: str | None = None) -> Artifact | None:
        """As `current`; None if it has not been made yet.

        Raises:
            DamagedFile: its manifest is damaged.
        """
        link = self._link(asset, experiment)
        folder = link.resolve()
        if not link.is_symlink() or not folder.is_dir():
            return None
        if (artifact := _read(asset, folder)) is None:
            raise DamagedFile(
                f"{folder / MANIFEST} is missing or damaged. Move {folder} away, and materialize {asset} again."
            )
        return artifact

    def unreadable(self, asset: str) -> list[Path]:
        """Folders in the place of a version of an asset whose manifest is missing or damaged."""
        entries = sorted(self.root.glob(f"{asset}/*"))
        places = (entry for entry in entries if self.owns(entry, "version") and entry.is_dir())
        return [entry for entry in places if not self._is_version(entry)]

    def versions(self, asset: str) -> list[Artifact]:
        """Every published version of an asset, oldest first."""
        entries = sorted(self.root.glob(f"{asset}/*"))
        found = [a for entry in entries if self._is_version(entry) and (a := _read(asset, entry))]
        return sorted(found, key=lambda artifact: artifact.manifest["serial"])

    def use(self, artifact: Artifact, experiment: str) -> None:
        """Point `current` and the experiment's own link at an artifact."""
        with self._writable(artifact.asset):
            self.folder(artifact.asset, "by_experiment")
            links = (self._link(artifact.asset, None), self._link(artifact.asset, experiment))
            for link in links:
                if os.path.lexists(link) and not self._is_link(link):
                    raise FimError(f"{link} is not a link of this store, so it is not replaced. Move it away.")
            for link in links:
                _replace_link(link, os.path.relpath(artifact.path, link.parent))

    @contextmanager
    def publish(
        self,
        asset: str,
        *,
        experiment: str,
        experiment_file: str | None = None,
        inputs: Mapping[str, str],
        config: Mapping[str, Any],
        code: str,
        builds: Mapping[str, str] | None = None,
        replace: bool = False,
    ) -> Iterator[Draft]:
        """Write a new version: yields a draft folder, published when the block ends well, removed when it does not.

        Everything is flushed to disk before the rename, so a version that can be seen is whole. With `replace`, a
        version that exists already is swapped for the new one.

        The manifest gets a `build` id, new for every build of a version, and a `serial` number, by which the builds of
        an asset are ordered. Neither depends on a clock.

        Args:
            experiment_file: tells apart the files that experiments are named after, if this one is.
            builds: build id of each input that is an artifact.

        Raises:
            FimError: the folder cannot be written, the disk is full, or something else is in the version's place.
            ValueError: no such asset.
        """
        if asset not in ASSETS:
            raise ValueError(f"a store holds no asset {asset}")
        version = version_of(inputs, config, code)
        with self._writable(asset):
            final = self.folder(asset) / version
            self._require_version(final)
            folder = self.folder("tmp") / f"{asset}-{version}-{os.getpid()}-{secrets.token_hex(4)}"
            folder.mkdir()
        new = folder / "new"
        try:
            with self._writable(asset):
                self._lease(folder, inputs)
                new.mkdir()
            with self.full_disk_told(asset):
                draft = Draft(new, {})
                yield draft
                manifest = {
                    "asset": asset,
                    "version": version,
                    "experiment": experiment,
                    "experiment_file": experiment_file,
                    "inputs": dict(inputs),
                    "build": secrets.token_hex(8),
                    "builds": dict(builds or {}),
                    "serial": 1 + max((a.manifest["serial"] for a in self.versions(asset)), default=0),
                    "config": config,
                    "config_digest": digest(config),
                    "code_version": code,
                    "commit": commit(),
                    "libraries": library_versions(),
                    "counts": draft.counts,
                    "bytes": sum(f.stat().st_size for f in new.rglob("*") if f.is_file()),
                    "files": digests_of(new, without=MANIFEST),
                    "created": datetime.now(UTC).isoformat(timespec="microseconds"),
                }
                content = json.dumps(seal(manifest), indent=2, ensure_ascii=False) + "\n"
                (new / MANIFEST).write_text(content, encoding="utf-8")
                flush_tree(new)
                self._require_version(final)
                if not final.exists():
                    _move_into_place(new, final)
                elif replace:
                    exchange(new, final)
                    self.forget_checks(asset, version)
        finally:
            self._discard(folder)

    @contextmanager
    def full_disk_told(self, asset: str) -> Iterator[None]:
        """Say in one sentence that the disk is full while something of an asset is written.

        Raises:
            FimError: it is.
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
    def making(self, asset: str, version: str) -> Iterator[None]:
        """Be the only one who makes a version; waits for another who does, whose result can then be reused.

        The kernel frees the lock of a process that dies.

        Raises:
            FimError: the folder cannot be written, or the disk is full.
        """
        with self._writable(asset):
            self.folder("locks")
            descriptor = open_lock(self._lock(asset, version))
        try:
            acquire(
                descriptor, on_wait=lambda: _log.warning("Another run makes %s %s; waiting for it.", asset, version)
            )
            yield
        finally:
            os.close(descriptor)

    def is_being_made(self, asset: str, version: str) -> bool:
        """Whether some process on this machine holds the lock of a version."""
        return is_locked(self._lock(asset, version))

    def links(self, forget: Sequence[str] = ()) -> list[Artifact]:
        """Every artifact that an experiment's link points at, or `current` as what an experiment made; save for those of
        experiments to forget."""
        used = [_read(link.parts[-3], link) for link in self.links_by_experiment() if link.name not in forget]
        latest = [_read(link.parent.name, link) for link in self.root.glob("*/current") if self._is_link(link)]
        return [a for a in used if a] + [a for a in latest if a and a.manifest["experiment"] not in forget]

    def links_by_experiment(self) -> list[Path]:
        """The link of every experiment to what it uses of every asset."""
        return [link for link in sorted(self.root.glob("*/by_experiment/*")) if self._is_link(link)]

    def repair_current(self) -> None:
        """Point each `current` whose version is gone at the newest version that an experiment uses, if there is one."""
        for asset in ASSETS:
            current = self._link(asset, None)
            if self._is_link(current) and not current.exists():
                links = (link for link in self.links_by_experiment() if link.parts[-3] == asset)
                used = [artifact for link in links if (artifact := _read(asset, link.resolve()))]
                if used:
                    newest = max(used, key=lambda artifact: artifact.manifest["serial"])
                    _replace_link(current, os.path.relpath(newest.path, current.parent))
                else:
                    current.unlink()

    def drafts(self) -> list[tuple[Path, Lease | None]]:
        """Folders of unfinished versions, each with its lease. None where it cannot be read, in the
        moment in which a draft begins or ends or something is removed, or after a kill in that moment."""
        return [(folder, _read_lease(folder)) for folder in self._folders("draft")]

    def work_folders(self) -> list[Path]:
        """Folders of unfinished attempts; the names are those of `work_folder`."""
        return self._folders("work")

    def _folders(self, kind: str) -> list[Path]:
        depth = {"draft": "tmp/*", "work": "work/*/*"}[kind]
        found = sorted(self.root.glob(depth))
        return [path for path in found if self.owns(path, kind) and path.is_dir() and not path.is_symlink()]

    def remove(self, folder: Path) -> None:
        """Delete a version, a draft or a work folder, which is gone at once for readers, whatever happens while its
        files go.

        Raises:
            FimError: the store is not marked as one.
            ValueError: the folder is none of the store's own.
        """
        self.require_mark()
        if not (self._is_version(folder) or folder in self._folders("draft") or folder in self._folders("work")):
            raise ValueError(f"{folder} is not a folder of {self.root}")
        with self._writable(folder.parent.name):
            grave = self.folder("tmp") / f"removed-{secrets.token_hex(8)}"
            os.rename(folder, grave)
            shutil.rmtree(grave)

    def remove_file(self, file: Path) -> None:
        """Delete a link of an experiment, its list of withdrawn checkpoints, or a part.

        Raises:
            FimError: the store is not marked as one.
            ValueError: the file is none of the store's own.
        """
        self.require_mark()
        if not self.may_remove(file):
            raise ValueError(f"{file} is not a file of {self.root}")
        file.unlink()

    def may_remove(self, file: Path) -> bool:
        """Whether `remove_file` deletes a file: a link that `use` made, or a file of the store under its own name."""
        if file.is_symlink():
            return self._is_link(file)
        return file.is_file() and (self.owns(file, "withdrawn") or self.owns(file, "batch"))

    def _is_version(self, path: Path) -> bool:
        """Whether a path is a published version: a folder, named and described as `publish` does."""
        return (
            self.owns(path, "version")
            and not path.is_symlink()
            and (found := _read(path.parent.name, path)) is not None
            and found.version == path.name
        )

    def _require_version(self, final: Path) -> None:
        """Go on if the place of a version is free, or holds that version.

        Raises:
            FimError: it holds something else.
        """
        if os.path.lexists(final) and not self._is_version(final):
            raise FimError(
                f"{final} exists and holds no artifact, or its {MANIFEST} is damaged, so it is not replaced. Move it "
                "away, and run again."
            )

    def _is_link(self, path: Path) -> bool:
        """Whether a path is a link that `use` made: to a version of the same asset."""
        if not (self.owns(path, "link") and path.is_symlink()):
            return False
        return re.fullmatch(rf"(?:\.\./)?{_VERSION}", os.readlink(path)) is not None

    @staticmethod
    def _lease(folder: Path, inputs: Mapping[str, str]) -> None:
        lease = Lease(os.getpid(), socket.gethostname(), dict(inputs))
        (folder / LEASE).write_text(json.dumps(asdict(lease)), encoding="utf-8")

    @staticmethod
    def _discard(folder: Path) -> None:
        """Remove a draft, its lease last: what a kill leaves in between still tells whose it was."""
        shutil.rmtree(folder / "new", ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)

    def forget_checks(self, asset: str, version: str) -> None:
        """Remove what checks found in a version that has been replaced or removed."""
        for found in (self.root / "checks" / asset).glob(f"{version}-*"):
            if self.owns(found, "check") and not found.is_symlink():
                found.unlink(missing_ok=True)

    @contextmanager
    def _writable(self, asset: str) -> Iterator[None]:
        try:
            with self.full_disk_told(asset):
                yield
        except OSError as error:
            raise FimError(
                f"{self.root} cannot be written ({error.strerror}). Make it writable, or name another folder: `storage` in "
                "the experiment, or FIM_STORAGE."
            ) from error

    def _lock(self, asset: str, version: str) -> Path:
        return self.root / "locks" / f"{asset}-{version}"

    def work_folder(self, asset: str, version: str) -> Path:
        """A folder that outlives failed attempts at a version, for what a retry resumes from.

        Raises:
            FimError: the folder cannot be written, or the disk is full.
        """
        with self._writable(asset):
            return self.folder("work", asset, version)

    def clear_work(self, asset: str, version: str) -> None:
        """Remove a version's work folder, once the version is published."""
        folder = self.root / "work" / asset / version
        if folder in self._folders("work"):
            shutil.rmtree(folder, ignore_errors=True)

    def _link(self, asset: str, experiment: str | None) -> Path:
        return self.root / asset / (f"by_experiment/{experiment}" if experiment else "current")


_DESCRIBED = {
    "asset": str,
    "version": str,
    "experiment": str,
    "inputs": dict,
    "build": str,
    "builds": dict,
    "serial": int,
    "config": dict,
    "counts": dict,
    "files": dict,
    "created": str,
}
"""What every manifest says at least, with its type."""


def _read(asset: str, folder: Path) -> Artifact | None:
    """What a folder holds of an asset; None where it holds no artifact, or one whose manifest is damaged."""
    place = folder / MANIFEST
    try:
        manifest = unseal(read_json(place))
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        if not folder.is_dir():
            return None
        _log.warning("This version is not used: %s", error)
        return None
    known = manifest is not None and all(isinstance(manifest.get(k), kind) for k, kind in _DESCRIBED.items())
    if manifest is None or not known or manifest["asset"] != asset:
        _log.warning("%s does not describe a version of %s, so this folder is not used.", place, asset)
        return None
    return Artifact(asset, manifest["version"], folder, manifest)


def require_whole_copy(folder: Path) -> None:
    """Go on if a folder has no manifest of ours, or holds what was published with it; a model card may have changed.

    For folders that a user names: an artifact, a copy of one, or anything else.

    Raises:
        DamagedFile: the manifest is damaged, or a file is missing or has changed.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except FileNotFoundError:
        return
    if not isinstance(manifest, dict) or not {"asset", "files"} <= manifest.keys():
        return  # another tool's
    plain = unseal(manifest)
    damage = f"{MANIFEST} has changed" if plain is None else find_damage(folder, plain["files"], ignore=("README.md",))
    if damage is not None:
        raise DamagedFile(
            f"{folder} is damaged: {damage}. Copy the folder again; in a store, `fim verify --delete` removes what is "
            "damaged, and the next run makes it again."
        )


def _read_lease(scratch: Path) -> Lease | None:
    try:
        return read_json_as(scratch / LEASE, Lease)
    except (FileNotFoundError, DamagedFile):
        return None


def _replace_link(link: Path, target: str) -> None:
    with replacing(link) as scratch:
        scratch.symlink_to(target)


def _move_into_place(new: Path, final: Path) -> None:
    try:
        os.rename(new, final)
    except OSError:
        # Another process published the same version first: by construction it holds the same content.
        if not (final / MANIFEST).is_file():
            raise
    flush(final.parent)
