"""Provenance of an artifact: versions, configuration and commits back to the exports."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg

from fim_assets.metadata.tables import table
from fim_core.store import Artifact, Store

_MOST_EXPORTS = 50
_HASH_DIGITS = 16


def made_from(artifact: Artifact, store: Store) -> dg.MetadataValue:
    """List the artifact and all versions that it was made from, upstream first.

    Exports, templates and pretrained weights are not assets and have only a content hash.
    """
    columns = dict.fromkeys(("name", "version", "config", "commit", "code", "made (UTC)"), "string")
    return table(columns, list(_lines(artifact, store, set())))


def exports(artifact: Artifact, store: Store) -> dg.MetadataValue:
    """List the export files that an artifact was made from, with their SHA-256."""
    found = [export for raw in _ancestors(artifact, store, "raw_completions") for export in raw.counts["exports"]]
    rows = [{"file": export["name"], "rows": export["rows"], "sha256": export["digest"]} for export in found]
    if len(rows) > _MOST_EXPORTS:
        rest = rows[_MOST_EXPORTS:]
        total = sum(row["rows"] for row in rest)
        rows = [*rows[:_MOST_EXPORTS], {"file": f"and {len(rest):,} more", "rows": total, "sha256": ""}]
    return table({"file": "string", "rows": "int", "sha256": "string"}, rows)


def _lines(artifact: Artifact, store: Store, seen: set[str]) -> Iterator[dict[str, str]]:
    manifest = artifact.manifest
    for name, version in manifest["inputs"].items():
        if version in seen:
            continue
        seen.add(version)
        if (upstream := store.find(name, version)) is not None:
            yield from _lines(upstream, store, seen)
        else:
            yield _line(name, version)
    commit, dash, dirty = (manifest["commit"] or "").partition("-")
    yield _line(
        artifact.asset,
        artifact.version,
        config=manifest["config_digest"][:8],
        commit=commit[:8] + dash + dirty,
        code=manifest["code_version"][:8],
        made=manifest["created"][:16].replace("T", " "),
    )


def _line(
    name: str, version: str, config: str = "", commit: str = "", code: str = "", made: str = ""
) -> dict[str, str]:
    version = version[:_HASH_DIGITS]
    return {"name": name, "version": version, "config": config, "commit": commit, "code": code, "made (UTC)": made}


def _ancestors(artifact: Artifact, store: Store, asset: str) -> list[Artifact]:
    """Versions of `asset` among the artifact and its inputs, each once."""
    if artifact.asset == asset:
        return [artifact]
    upstream = [store.find(name, version) for name, version in artifact.manifest["inputs"].items()]
    found = [a for parent in upstream if parent is not None for a in _ancestors(parent, store, asset)]
    return list({a.version: a for a in found}.values())
