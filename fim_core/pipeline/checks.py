"""Quality checks of artifacts, run once for each version and remembered beside the store."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fim_core.config import Experiment
from fim_core.errors import DamagedFile, FimError
from fim_core.integrity import read_sealed, write_sealed
from fim_core.pipeline.code import code_version
from fim_core.quality.run import CheckResult, run_checks
from fim_core.recipe import read_recipe
from fim_core.store import Artifact, Store, digest

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from fim_core.tokens import FimTokens


def run_artifact_checks(artifact: Artifact, experiment: Experiment, store: Store) -> list[CheckResult]:
    """The results of an artifact's checks under an experiment's thresholds.

    An artifact never changes, so what its checks found is kept in `checks/` of the store, and found again when the
    artifact is an input later.

    Raises:
        DamagedFile: a file of what it was made from is not what was published.
    """
    overrides = {name: override.model_dump(mode="json") for name, override in sorted(experiment.checks.items())}
    key = digest({"overrides": overrides, "code": code_version("quality")})
    remembered = store.root / "checks" / artifact.asset / f"{artifact.version}-{key}.json"
    if (results := _remembered(remembered)) is not None:
        return results
    results = run_checks(artifact.asset, tables_of(artifact, store), _parameters(artifact, store), experiment.checks)
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
    with store.full_disk_told(artifact.asset):
        store.folder("checks", artifact.asset)
        write_sealed(place, {"results": [asdict(result) for result in results]})


def blocking_failures(results: Sequence[CheckResult]) -> list[CheckResult]:
    """The checks that keep what comes after from running."""
    return [result for result in results if not result.passed and result.severity == "error"]


def tables_of(artifact: Artifact, store: Store) -> dict[str, Path]:
    """What the checks of an artifact look at, by the names that they use."""
    own = _OWN_TABLES.get(artifact.asset, {})
    tables = {name: artifact.path / place for name, place in own.items()}
    for asset in _LOOKS_BACK.get(artifact.asset, ()):
        upstream = store.find(asset, artifact.manifest["inputs"][asset])
        if upstream is not None:
            upstream.require_whole()
            tables |= {name: upstream.path / place for name, place in _OWN_TABLES[asset].items() if name not in tables}
    if artifact.asset == "fim_prompts":
        tables |= _previous(artifact, store)
    return tables


_OWN_TABLES = {
    "raw_completions": {"raw_completions": "raw_completions.parquet"},
    "fim_prompts": {"fim_prompts": "prompts.parquet", "rejected": "rejected.parquet"},
    "tokenized_dataset": {
        "tokenized_dataset": "dataset",
        "not_tokenized": "rejected.parquet",
        "changed": "changed.parquet",
    },
    "trained_checkpoint": {"checkpoint": "."},
    "evaluation_report": {"report": "report.json"},
    "champion_model": {"decision": "decision.json"},
}
_LOOKS_BACK = {"fim_prompts": ("raw_completions",), "tokenized_dataset": ("fim_prompts",)}


def _previous(artifact: Artifact, store: Store) -> dict[str, Path]:
    """The version made before this one for the same experiment, to measure drift against."""
    older = [
        other
        for other in store.versions(artifact.asset)
        if other.manifest["experiment"] == artifact.manifest["experiment"]
        and other.manifest["serial"] < artifact.manifest["serial"]
    ]
    if not older:
        return {}
    if (damage := older[-1].find_damage()) is not None:
        _log.warning("Nothing is compared with %s, which is damaged: %s", older[-1].path, damage)
        return {}
    return {"previous": older[-1].path / "prompts.parquet"}


def _parameters(artifact: Artifact, store: Store) -> dict[str, Any]:
    """Values that the checks of an artifact use: tokens, limits, losses."""
    config, counts = artifact.manifest["config"], artifact.counts
    if artifact.asset == "fim_prompts":
        tokens = _tokens(artifact)
        return {
            "prefix_token": tokens.prefix,
            "suffix_token": tokens.suffix,
            "middle_token": tokens.middle,
            "group_by": config["data"]["group_by"],
            "placeholder": config["data"]["placeholder"],
            "rejected_path": str(artifact.path / "rejected.parquet"),
            "asked": artifact.counts["asked_share"],
            "shared_statements": artifact.counts["shared"],
        }
    if artifact.asset == "tokenized_dataset":
        prompts = _input(artifact, store, "fim_prompts")
        return {
            "end_id": _tokens(prompts).end_id,
            "vocab_size": prompts.counts["vocab_size"],
            "max_length": config["data"]["max_length"],
            "mask_inputs": config["data"]["mask_inputs"],
            "rejected_path": str(artifact.path / "rejected.parquet"),
            "asked": prompts.counts["asked_share"],
            "nothing_held_out": prompts.counts["nothing_held_out"],
        }
    if artifact.asset == "trained_checkpoint":
        tokens = _tokens(_input(artifact, store, "fim_prompts"))
        return {
            "end_ids": list(tokens.end_ids),
            "loss_before": counts["loss_before"],
            "loss_after": counts["loss_after"],
        }
    return {}


def _input(artifact: Artifact, store: Store, asset: str) -> Artifact:
    version = artifact.manifest["inputs"][asset]
    found = store.find(asset, version)
    if found is None:
        raise FimError(
            f"{artifact.asset} {artifact.version} was made from {asset} {version}, which is gone from {store.root}. "
            f"Materialize {asset} again."
        )
    return found.require_whole()


def _tokens(prompts: Artifact) -> FimTokens:
    return read_recipe(prompts.path).fim_tokens
