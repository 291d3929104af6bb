"""Quality checks of artifacts, run once for each version and remembered beside the store."""

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
    """The results of an artifact's checks under an experiment's thresholds.

    An artifact never changes, so what its checks found is kept in `checks/` of the store, and found again when the
    artifact is an input later.

    Args:
        upstream_of: finds a stage by asset name.

    Raises:
        FimError: what it was made from is gone.
        DamagedFile: a file of that is not what was published.
    """
    overrides = {name: override.model_dump(mode="json") for name, override in sorted(experiment.checks.items())}
    key = digest({"overrides": overrides, "code": code_version(*check_modules())})
    remembered = store.root / "checks" / artifact.asset / f"{artifact.version}-{key}.json"
    if (results := _remembered(remembered)) is not None:
        return results
    inputs = _inputs(stage, artifact, store)
    tables = tables_of(stage, artifact, inputs, store, upstream_of)
    facts = _facts(artifact) | {asset: _facts(given) for asset, given in inputs.items()}
    results = run_checks(artifact.asset, tables, facts, overrides)
    _remember(results, remembered, artifact, store)
    return results


def _remembered(place: Path) -> list[CheckResult] | None:
    """What was kept in a file; None where there is none, or where it is damaged and the checks have to run again."""
    try:
        return [CheckResult(**entry) for entry in read_sealed(place)["results"]]
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        _log.warning("%s is damaged, so the checks run again: %s", place, error)
        return None


def _remember(results: Sequence[CheckResult], place: Path, artifact: Artifact, store: Store) -> None:
    with store.reporting_full_disk(artifact.asset):
        store.folder("checks", artifact.asset)
        write_sealed(place, {"results": [asdict(result) for result in results]})


def blocking_failures(results: Sequence[CheckResult]) -> list[CheckResult]:
    """The checks that keep what comes after from running."""
    return [result for result in results if not result.passed and result.severity == "error"]


def tables_of(
    stage: Stage, artifact: Artifact, inputs: Mapping[str, Artifact], store: Store, upstream_of: Callable[[str], Stage]
) -> dict[str, Path]:
    """What the checks of an artifact look at, by the names that they use."""
    tables: dict[str, Path] = {}
    for asset in stage.checks_with:
        tables |= upstream_of(asset).tables(inputs[asset].path)
    tables |= stage.tables(artifact.path)
    if stage.compares_with_previous and (previous := _previous(artifact, store)) is not None:
        tables["previous"] = stage.tables(previous.path)[stage.asset]
    return tables


def _previous(artifact: Artifact, store: Store) -> Artifact | None:
    """The version made before this one for the same experiment, to measure drift against."""
    older = [
        other
        for other in store.versions(artifact.asset)
        if other.manifest["experiment"] == artifact.manifest["experiment"]
        and other.manifest["serial"] < artifact.manifest["serial"]
    ]
    if not older:
        return None
    if (damage := older[-1].find_damage()) is not None:
        _log.warning("Nothing is compared with %s, which is damaged: %s", older[-1].path, damage)
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
    """The inputs of an artifact that its checks need."""
    found: dict[str, Artifact] = {}
    for asset in stage.checks_with:
        version = artifact.manifest["inputs"][asset]
        if (given := store.find(asset, version)) is None:
            raise FimError(
                f"{artifact.asset} {artifact.version} was made from {asset} {version}, which is gone from {store.root}. "
                f"Materialize {asset} again."
            )
        found[asset] = given.require_whole()
    return found
