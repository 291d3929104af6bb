"""Quality checks of artifacts, with results cached in the store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fim_core.config import Experiment
from fim_core.errors import DamagedFile, FimError
from fim_core.integrity import read_sealed, write_sealed
from fim_core.pipeline.code_version import code_version
from fim_core.pipeline.stage import Stage
from fim_core.prompt_format.recipe import find_recipe
from fim_core.quality.run import CheckResult, check_modules, run_checks
from fim_core.store import Artifact, Store, digest

_log = logging.getLogger(__name__)


def run_artifact_checks(
    stage: Stage, artifact: Artifact, experiment: Experiment, store: Store, upstream_of: Callable[[str], Stage]
) -> list[CheckResult]:
    """Run an artifact's checks with an experiment's thresholds, or return their cached results.

    Artifacts never change, so results are cached in `checks/` of the store.

    Args:
        upstream_of: returns a stage by asset name.

    Raises:
        FimError: an input of the artifact no longer exists.
        DamagedFile: a file of an input is damaged.
    """
    overrides = {name: override.model_dump(mode="json") for name, override in sorted(experiment.checks.items())}
    key = digest({"overrides": overrides, "code": code_version(*check_modules())})
    cache_file = store.root / "checks" / artifact.asset / f"{artifact.version}-{key}.json"
    if (results := _read_cached(cache_file)) is not None:
        return results
    inputs = _inputs(stage, artifact, store)
    tables = tables_of(stage, artifact, inputs, store, upstream_of)
    facts = _facts(artifact) | {asset: _facts(given) for asset, given in inputs.items()}
    results = run_checks(artifact.asset, tables, facts, overrides)
    _write_cached(results, cache_file, artifact, store)
    return results


def _read_cached(file: Path) -> list[CheckResult] | None:
    """Cached results; None if there are none, or if the file is damaged."""
    try:
        return [CheckResult(**entry) for entry in read_sealed(file)["results"]]
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        _log.warning("%s is damaged, so the checks run again: %s", file, error)
        return None


def _write_cached(results: Sequence[CheckResult], file: Path, artifact: Artifact, store: Store) -> None:
    with store.reporting_full_disk(artifact.asset):
        store.folder("checks", artifact.asset)
        write_sealed(file, {"results": [asdict(result) for result in results]})


def blocking_failures(results: Sequence[CheckResult]) -> list[CheckResult]:
    """Failed checks of severity error, which block downstream stages."""
    return [result for result in results if not result.passed and result.severity == "error"]


def tables_of(
    stage: Stage, artifact: Artifact, inputs: Mapping[str, Artifact], store: Store, upstream_of: Callable[[str], Stage]
) -> dict[str, Path]:
    """Files and folders that an artifact's checks read, by table name."""
    tables: dict[str, Path] = {}
    for asset in stage.checks_with:
        tables |= upstream_of(asset).tables(inputs[asset].path)
    tables |= stage.tables(artifact.path)
    if stage.compares_with_previous and (previous := _previous(artifact, store)) is not None:
        tables["previous"] = stage.tables(previous.path)[stage.asset]
    return tables


def _previous(artifact: Artifact, store: Store) -> Artifact | None:
    """The previous version of the same experiment, to measure drift against; None if there is none, or it is damaged."""
    older = [
        other
        for other in store.versions(artifact.asset)
        if other.manifest["experiment"] == artifact.manifest["experiment"]
        and other.manifest["serial"] < artifact.manifest["serial"]
    ]
    if not older:
        return None
    if (damage := older[-1].find_damage()) is not None:
        _log.warning("The previous version %s is damaged, so drift is not checked: %s", older[-1].path, damage)
        return None
    return older[-1]


def _facts(artifact: Artifact) -> dict[str, Any]:
    recipe = find_recipe(artifact.path)
    return {
        "config": artifact.manifest["config"],
        "counts": artifact.counts,
        "recipe": asdict(recipe) if recipe else {},
    }


def _inputs(stage: Stage, artifact: Artifact, store: Store) -> dict[str, Artifact]:
    """Input artifacts that the checks need."""
    found: dict[str, Artifact] = {}
    for asset in stage.checks_with:
        version = artifact.manifest["inputs"][asset]
        if (given := store.find(asset, version)) is None:
            raise FimError(
                f"{artifact.asset} {artifact.version} was made from {asset} {version}, which is no longer in {store.root}. "
                f"Materialize {asset} again."
            )
        found[asset] = given.require_whole()
    return found
