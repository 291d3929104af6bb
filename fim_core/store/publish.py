"""Publishing of versions: written as a draft, flushed to disk, and renamed into place."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fim_core.atomic import exchange, flush, flush_tree
from fim_core.integrity import digests_of, seal
from fim_core.provenance import commit, library_versions
from fim_core.store.artifact import MANIFEST, digest, version_of
from fim_core.store.drafts import Draft, discard, draft_folder, write_owner
from fim_core.store.places import ASSETS, StoreFolder
from fim_core.store.removal import forget_checks
from fim_core.store.versions import require_replaceable, versions


@contextmanager
def publish(
    store: StoreFolder,
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
    """Yield the draft of a new version, which is published if the block ends without an error and removed otherwise.

    Everything is flushed to disk before the rename, so a version that can be seen is whole. With `replace`, a
    version that exists already is swapped for the new one.

    The manifest gets a `build` id, new for every build of a version, and a `serial` number, by which the builds of
    an asset are ordered. Neither depends on a clock.

    Args:
        experiment_file: identifies the file that the experiment is named after, if it is named after one.
        inputs, config, code: decide the version, see `version_of`.
        builds: build id of each input that is an artifact.

    Raises:
        FimError: the folder cannot be written, the disk is full, or something else is in the version's place.
        ValueError: no such asset.
    """
    if asset not in ASSETS:
        raise ValueError(f"a store holds no asset {asset}")
    version = version_of(inputs, config, code)
    with store.reporting_unwritable(asset):
        final = store.folder(asset) / version
        require_replaceable(store, final)
        folder = draft_folder(store, asset, version)
    draft = Draft(folder / "new", {})
    try:
        with store.reporting_unwritable(asset):
            write_owner(folder, inputs)
            draft.path.mkdir()
        with store.reporting_full_disk(asset):
            yield draft
            manifest = {
                "asset": asset,
                "version": version,
                "experiment": experiment,
                "experiment_file": experiment_file,
                "inputs": dict(inputs),
                "build": secrets.token_hex(8),
                "builds": dict(builds or {}),
                "serial": 1 + max((a.manifest["serial"] for a in versions(store, asset)), default=0),
                "config": config,
                "config_digest": digest(config),
                "code_version": code,
                "commit": commit(),
                "libraries": library_versions(),
                "counts": draft.counts,
                "bytes": sum(f.stat().st_size for f in draft.path.rglob("*") if f.is_file()),
                "files": digests_of(draft.path, without=MANIFEST),
                "created": datetime.now(UTC).isoformat(timespec="microseconds"),
            }
            content = json.dumps(seal(manifest), indent=2, ensure_ascii=False) + "\n"
            (draft.path / MANIFEST).write_text(content, encoding="utf-8")
            flush_tree(draft.path)
            require_replaceable(store, final)
            if not final.exists():
                _move_into_place(draft.path, final)
            elif replace:
                exchange(draft.path, final)
                forget_checks(store, asset, version)
    finally:
        discard(folder)


def _move_into_place(new: Path, final: Path) -> None:
    try:
        os.rename(new, final)
    except OSError:
        # Another process published the same version first: by construction it holds the same content.
        if not (final / MANIFEST).is_file():
            raise
    flush(final.parent)
