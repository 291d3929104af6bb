"""Materialization of stages: verify the inputs, make a version once or reuse it, run its checks."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fim_core.batch_cache import BATCH_CACHE, BatchCache
from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.launchers.base import StartRanks
from fim_core.pipeline.checks import blocking_failures, run_artifact_checks
from fim_core.pipeline.preflight import preflight
from fim_core.pipeline.stage import Build, OnEvent, Stage
from fim_core.quality.run import CheckResult
from fim_core.records.snowflake import queries_run_once
from fim_core.store import Artifact, Store, digest, version_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its artifact, check results, and whether the version was reused."""

    artifact: Artifact
    checks: list[CheckResult]
    reused: bool
    seconds: float

    @property
    def blocked_by(self) -> list[CheckResult]:
        """Failed checks that block downstream stages."""
        return blocking_failures(self.checks)


@queries_run_once()
def run_stage(
    stage: Stage,
    experiment: Experiment,
    store: Store,
    *,
    upstream_of: Callable[[str], Stage],
    force: bool = False,
    on_event: OnEvent = lambda event: None,
    start: StartRanks | None = None,
) -> StageResult:
    """Make an asset from the current versions of its inputs, or reuse the version that already exists.

    Args:
        stage: the stage to make.
        upstream_of: returns a stage by asset name, to verify that inputs match the experiment.
        force: make the version again even if it exists.
        on_event: called with progress events.
        start: starts the ranks of a training run; None: start them with the experiment's launcher.

    Raises:
        FimError: an input is missing, was made with other options, or failed a blocking check; or this machine lacks
            something that this stage or a later one needs.
        DamagedFile: a file of an input, or of the existing version, is damaged.
    """
    started = time.monotonic()
    _require_one_file(stage, experiment, store)
    inputs = {asset: _verified_input(upstream_of(asset), experiment, store, upstream_of) for asset in stage.upstream}
    outside = stage.outside(experiment, store, inputs)
    identity: dict[str, Any] = {
        "inputs": {asset: artifact.version for asset, artifact in inputs.items()} | outside,
        "config": stage.options(experiment),
        "code": stage.code_version,
    }
    version = version_of(**identity)

    def make() -> None:
        preflight(experiment, trains=stage.trains)
        builds = {asset: artifact.manifest["build"] for asset, artifact in inputs.items()}
        with store.publish(
            stage.asset,
            experiment=experiment.name,
            experiment_file=_file_id(experiment, store),
            builds=builds,
            replace=True,
            **identity,
        ) as draft:
            build = Build(
                experiment,
                store,
                inputs,
                draft.path,
                lambda: store.work_folder(stage.asset, version),
                on_event,
                BatchCache(
                    store.folder(BATCH_CACHE, stage.asset), digest({**identity, "inputs": outside}), renew=force
                ),
                start,
            )
            draft.counts.update(stage.build(build))
            if changed := stage.outside(experiment, store, inputs).items() - outside.items():
                what = ", ".join(sorted(name for name, _ in changed))
                raise FimError(
                    f"Inputs of {stage.asset} changed while it was being made ({what}). Materialize {stage.asset} again."
                )
        store.clear_work(stage.asset, version)

    with store.making(stage.asset, version):
        artifact = None if force else _up_to_date(store.find(stage.asset, version), inputs)
        reused = artifact is not None
        if not reused:
            make()
            artifact = store.find(stage.asset, version)
    assert artifact is not None, "publish returned, so the version is there"
    artifact.require_whole()
    _present(stage, artifact, experiment, store, reused=reused)
    if stage.adopt(artifact):
        store.use(artifact, experiment.name)
    checks = run_artifact_checks(stage, artifact, experiment, store, upstream_of)
    stage.finish(experiment, store, on_event)
    return StageResult(artifact, checks, reused, time.monotonic() - started)


def _present(stage: Stage, artifact: Artifact, experiment: Experiment, store: Store, *, reused: bool) -> None:
    """Write what people look at. A version that is reused may belong to somebody else: that it is old is no error."""
    try:
        with store.reporting_full_disk(stage.asset):
            stage.present(artifact, experiment, store)
    except OSError as error:
        if not reused:
            raise
        _log.warning("%s could not be brought up to date (%s).", artifact.path, error.strerror)


def _require_one_file(stage: Stage, experiment: Experiment, store: Store) -> None:
    """Check that no experiment file of the same name in another folder uses the same storage.

    Raises:
        FimError: one does, and neither file sets `name`.
    """
    try:
        before = store.current(stage.asset, experiment.name)
    except FimError:
        return
    other, this = before.manifest.get("experiment_file"), _file_id(experiment, store)
    if other and this and other != this:
        raise FimError(
            f"{experiment.named_by} and a file of the same name in another folder use the same storage {store.root}, so "
            "each would replace the other's artifacts. Set `name` or `storage` in one of them. If the file was only moved, "
            f"set `name: {experiment.name}` in it."
        )


def _file_id(experiment: Experiment, store: Store) -> str | None:
    """Identify the file that an experiment is named after; None for an experiment with an explicit name.

    The id is a hash of the file's path relative to the storage. Relative, so that a project can be moved or copied with
    its storage; a hash, because manifests may be shared with others.
    """
    if experiment.named_by is None:
        return None
    return digest({"file": os.path.relpath(experiment.named_by, store.root.resolve())})


def _up_to_date(artifact: Artifact | None, inputs: Mapping[str, Artifact]) -> Artifact | None:
    """Return the artifact unless an input was made again by force since: the same work need not give the same bytes."""
    builds = {asset: given.manifest["build"] for asset, given in inputs.items()}
    return artifact if artifact is not None and artifact.manifest["builds"] == builds else None


def _verified_input(
    stage: Stage, experiment: Experiment, store: Store, upstream_of: Callable[[str], Stage]
) -> Artifact:
    artifact = store.current(stage.asset, experiment.name).require_whole()
    wanted = stage.options(experiment)
    if artifact.manifest["config"] != wanted:
        changed = ", ".join(_differences(artifact.manifest["config"], wanted))
        raise FimError(
            f"The {stage.asset} in {store.root} was made with other options than {experiment.name} now has "
            f"({changed}). Materialize {stage.asset} again first."
        )
    failed = blocking_failures(run_artifact_checks(stage, artifact, experiment, store, upstream_of))
    if failed:
        raise FimError(
            f"{stage.asset} {artifact.version} did not pass its checks: "
            + "; ".join(check.sentence.rstrip(".") for check in failed)
            + f". Correct the data or the options and materialize {stage.asset} again, or change the thresholds under `checks`."
        )
    return artifact


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted keys at which two nested mappings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(set(old) | set(new))
        return [
            found
            for key in keys
            for found in _differences(old.get(key), new.get(key), f"{path}.{key}".removeprefix("."))
        ]
    return [] if old == new else [path or "options"]
