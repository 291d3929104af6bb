"""Where artifacts lie: content-addressed, immutable, published whole or not at all.

    .fim/<asset>/<version>/…            what the stage wrote, and manifest.json
    .fim/<asset>/current                link to the newest version
    .fim/<asset>/by_experiment/<name>   link to the version that this experiment uses
    .fim/tmp/<draft>/lease.json, new/   a version that is being written, and by whom
    .fim/work/<asset>/<version>/        what an unfinished attempt left, for the next one to resume from
    .fim/locks/<asset>-<version>        locked while somebody makes the version
    .fim/parts/<asset>/…                what was made of batches of rows, to be used again (see parts.py)

A version is the hash of everything that decides the content (inputs' versions, options, code), so that the same work
is never done twice and a checkpoint names every byte it came from.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from fim_core.errors import FimError
from fim_core.files import flush, flush_tree, replacing

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LEASE = "lease.json"
RECORDED_LIBRARIES = ("torch", "transformers", "tokenizers", "deepspeed", "datasets", "duckdb", "pyarrow", "sqlglot")


def version_of(inputs: Mapping[str, str], config: Mapping[str, Any], code: str) -> str:
    """The version (16 hex digits of SHA-256) of what `code` makes of `inputs` under `config`.

    Args:
        inputs: name of each input to its version or content hash.
        config: the options that decide the content, JSON-serialisable.
        code: version of the code that does the work.
    """
    content = json.dumps({"inputs": dict(inputs), "config": config, "code": code}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def champion_folder(experiment: str) -> str:
    """Where a champion's weights are within its artifact: `model/<experiment>`.

    Tools name a model after its folder, so it has the experiment's name.
    """
    return f"model/{experiment}"


def champion_weights(champion: Artifact) -> Path:
    """The folder of a champion's weights, which loads with transformers."""
    return champion.path / champion_folder(champion.manifest["experiment"])


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


@dataclass
class Draft:
    """A version being written: put files under `path`, and what you counted into `counts`."""

    path: Path
    counts: dict[str, Any]


class Store:
    """The folder of all artifacts. Safe against kills at any moment and against two writers of one version."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def find(self, asset: str, version: str) -> Artifact | None:
        """The published artifact, or None."""
        return _read(asset, self.root / asset / version)

    def current(self, asset: str, experiment: str | None = None) -> Artifact:
        """The newest artifact of an asset, or the one that an experiment uses.

        Raises:
            FimError: it has not been made yet.
        """
        link = self._link(asset, experiment)
        if link.is_symlink() and (artifact := _read(asset, link.resolve())):
            return artifact
        whose = f" of experiment {experiment}" if experiment else ""
        raise FimError(f"There is no {asset}{whose} in {self.root} yet. Materialize {asset} first.")

    def versions(self, asset: str) -> list[Artifact]:
        """Every published version of an asset, oldest first."""
        folder = self.root / asset
        entries = folder.iterdir() if folder.is_dir() else ()
        found = [a for entry in entries if entry.is_dir() and not entry.is_symlink() and (a := _read(asset, entry))]
        return sorted(found, key=lambda artifact: artifact.manifest["created"])

    def use(self, artifact: Artifact, experiment: str) -> None:
        """Point `current` and the experiment's own link at an artifact."""
        with self.full_disk_told(artifact.asset):
            for link in (self._link(artifact.asset, None), self._link(artifact.asset, experiment)):
                link.parent.mkdir(parents=True, exist_ok=True)
                _replace_link(link, os.path.relpath(artifact.path, link.parent))

    @contextmanager
    def publish(
        self,
        asset: str,
        *,
        experiment: str,
        inputs: Mapping[str, str],
        config: Mapping[str, Any],
        code: str,
        replace: bool = False,
    ) -> Iterator[Draft]:
        """Write a new version: yields a draft folder, published when the block ends well, removed when it does not.

        Everything is flushed to disk before the rename, so a version that can be seen is whole. With `replace`, a
        version that exists already is swapped for the new one.

        Raises:
            FimError: the folder cannot be written, or the disk is full.
        """
        version = version_of(inputs, config, code)
        final = self.root / asset / version
        folder = self.root / "tmp" / f"{asset}-{version}-{os.getpid()}-{secrets.token_hex(4)}"
        new = folder / "new"
        try:
            with self._writable(asset):
                folder.mkdir(parents=True)
                self._lease(folder, inputs)
                new.mkdir()
                final.parent.mkdir(parents=True, exist_ok=True)
            with self.full_disk_told(asset):
                draft = Draft(new, {})
                yield draft
                manifest = {
                    "asset": asset,
                    "version": version,
                    "experiment": experiment,
                    "inputs": dict(inputs),
                    "config": config,
                    "config_digest": digest(config),
                    "code_version": code,
                    "commit": _commit(),
                    "libraries": _library_versions(),
                    "counts": draft.counts,
                    "bytes": sum(f.stat().st_size for f in new.rglob("*") if f.is_file()),
                    "created": datetime.now(UTC).isoformat(timespec="microseconds"),
                }
                content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
                (new / MANIFEST).write_text(content, encoding="utf-8")
                flush_tree(new)
                if replace and final.exists():
                    _exchange(new, final)
                    self.forget_checks(asset, version)
                else:
                    _move_into_place(new, final)
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
        except OSError as error:
            if error.errno != errno.ENOSPC:
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
        lock = self._lock(asset, version)
        with self._writable(asset):
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _locked(descriptor):
                _log.warning("Another run makes %s %s; waiting for it.", asset, version)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def is_being_made(self, asset: str, version: str) -> bool:
        """Whether some process on this machine holds the lock of a version."""
        try:
            descriptor = os.open(self._lock(asset, version), os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _locked(descriptor)
        finally:
            os.close(descriptor)

    def links(self, forget: Sequence[str] = ()) -> list[Artifact]:
        """Every artifact that an experiment's link points at, or `current` as what an experiment made; save for those of
        experiments to forget."""
        used = [_read(link.parts[-3], link) for link in self.links_by_experiment() if link.name not in forget]
        latest = [_read(link.parent.name, link) for link in self.root.glob("*/current")]
        return [a for a in used if a] + [a for a in latest if a and a.manifest["experiment"] not in forget]

    def links_by_experiment(self) -> list[Path]:
        """The link of every experiment to what it uses of every asset."""
        return sorted(link for link in self.root.glob("*/by_experiment/*") if not link.name.startswith("."))

    def mend_current(self) -> None:
        """Point each `current` whose version is gone at the newest version that an experiment uses, if there is one."""
        for folder in self.root.iterdir():
            current = folder / "current"
            if current.is_symlink() and not current.exists():
                links = (link for link in self.links_by_experiment() if link.parts[-3] == folder.name)
                used = [artifact for link in links if (artifact := _read(folder.name, link.resolve()))]
                if used:
                    newest = max(used, key=lambda artifact: artifact.manifest["created"])
                    _replace_link(current, os.path.relpath(newest.path, folder))
                else:
                    current.unlink()

    def drafts(self) -> list[tuple[Path, dict[str, Any] | None]]:
        """Folders of unfinished versions, each with its lease: pid, host, inputs. None where it cannot be read, in the
        moment in which a draft begins or ends or something is removed, or after a kill in that moment."""
        return [(folder, _read_lease(folder)) for folder in (self.root / "tmp").glob("*")]

    def remove(self, folder: Path) -> None:
        """Delete a folder of the store, which is gone at once for readers, whatever happens while its files go."""
        grave = self.root / "tmp" / f"removed-{secrets.token_hex(8)}"
        grave.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, grave)
        shutil.rmtree(grave)

    @staticmethod
    def _lease(folder: Path, inputs: Mapping[str, str]) -> None:
        lease = {"pid": os.getpid(), "host": socket.gethostname(), "inputs": dict(inputs)}
        (folder / LEASE).write_text(json.dumps(lease), encoding="utf-8")

    @staticmethod
    def _discard(folder: Path) -> None:
        """Remove a draft, its lease last: what a kill leaves in between still tells whose it was."""
        shutil.rmtree(folder / "new", ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)

    def forget_checks(self, asset: str, version: str) -> None:
        """Remove what checks found in a version that has been replaced or removed."""
        for found in (self.root / "checks" / asset).glob(f"{version}-*"):
            found.unlink(missing_ok=True)

    @contextmanager
    def _writable(self, asset: str) -> Iterator[None]:
        try:
            with self.full_disk_told(asset):
                yield
        except OSError as error:
            raise FimError(
                f"{self.root} cannot be written ({error.strerror}). Name another folder: `storage` in the experiment, "
                "or FIM_STORAGE."
            ) from error

    def _lock(self, asset: str, version: str) -> Path:
        return self.root / "locks" / f"{asset}-{version}"

    def work_folder(self, asset: str, version: str) -> Path:
        """A folder that outlives failed attempts at a version, for what a retry resumes from."""
        folder = self.root / "work" / asset / version
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear_work(self, asset: str, version: str) -> None:
        """Remove a version's work folder, once the version is published."""
        shutil.rmtree(self.root / "work" / asset / version, ignore_errors=True)

    def _link(self, asset: str, experiment: str | None) -> Path:
        return self.root / asset / (f"by_experiment/{experiment}" if experiment else "current")


def _read(asset: str, folder: Path) -> Artifact | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Artifact(asset, manifest["version"], folder, manifest)


def _read_lease(scratch: Path) -> dict[str, Any] | None:
    try:
        return json.loads((scratch / LEASE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _replace_link(link: Path, target: str) -> None:
    with replacing(link) as scratch:
        scratch.symlink_to(target)


def _locked(descriptor: int) -> bool:
    """Lock a file if nobody else has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _exchange(new: Path, final: Path) -> None:
    """Swap two folders: in one step where the system can (Linux's renameat2), so that no kill leaves neither."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    places = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(final))
    if renameat2 is None or renameat2(*places, _RENAME_EXCHANGE) != 0:
        os.rename(final, new.with_name("old"))
        os.rename(new, final)
    flush(final.parent)


def _move_into_place(new: Path, final: Path) -> None:
    try:
        os.rename(new, final)
    except OSError:
        # Another process published the same version first: by construction it holds the same content.
        if not (final / MANIFEST).is_file():
            raise
    flush(final.parent)


@cache
def _commit() -> str | None:
    """The git commit of this code, marked when files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in RECORDED_LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
