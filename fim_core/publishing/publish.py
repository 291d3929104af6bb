"""Publishing of an experiment's champion to all of its targets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fim_core.champion.registry import champion
from fim_core.config import Experiment
from fim_core.config.publishing import FolderTarget, HubTarget, MlflowTarget
from fim_core.errors import FimError, system_error
from fim_core.object_storage.urls import is_url
from fim_core.publishing.bucket import publish_to_bucket
from fim_core.publishing.folder import publish_to_folder
from fim_core.publishing.hub import publish_to_hub
from fim_core.publishing.mlflow import publish_to_mlflow
from fim_core.publishing.release import Release, release_of
from fim_core.store import Store

OnEvent = Callable[[dict[str, Any]], None]


def publish_champion(experiment: Experiment, store: Store, on_event: OnEvent = lambda event: None) -> None:
    """Publish the present champion to every target; what is there already stays as it is.

    Each target is tried, also after one has failed.

    Args:
        on_event: called with `{"event": "published", "place": …, "champion": …, "changed": …}` for each target.

    Raises:
        FimError: a target failed. The champion is the champion all the same, and publishing can be repeated.
    """
    current = champion(store, experiment.name) if experiment.publish else None
    if current is None:
        return
    release = release_of(current, store)
    failures = []
    for target in experiment.publish:
        try:
            changed = _publish(release, target)
        except (FimError, OSError) as error:
            failures.append(f"{target.place}: {system_error(error) or error}")
        else:
            on_event({"event": "published", "place": target.place, "champion": release.name, "changed": changed})
    if failures:
        reasons = " ".join(failures)
        raise FimError(
            f"{current.version} is the champion of {experiment.name}, but it is not published everywhere. {reasons} "
            "Then run `fim champion publish` with this experiment file."
        )


def planned(experiment: Experiment, store: Store) -> list[str]:
    """What `publish_champion` would publish, in a sentence for each target.

    Raises:
        FimError: there is no champion, or no target.
    """
    if not experiment.publish:
        raise FimError(f"Experiment {experiment.name} has no `publish`. Add a folder or URL to it.")
    if (current := champion(store, experiment.name)) is None:
        raise FimError(f"Experiment {experiment.name} has no champion to publish. Promote one first.")
    release = release_of(current, store)
    what = f"{release.name}: {len(release.files)} files, {release.bytes / 1e6:,.1f} MB"
    return [f"{target.place}: would publish {what}" for target in experiment.publish]


def _publish(release: Release, target: FolderTarget | HubTarget | MlflowTarget) -> bool:
    match target:
        case FolderTarget(path=path) if is_url(path):
            return publish_to_bucket(release, path)
        case FolderTarget(path=path):
            return publish_to_folder(release, Path(path))
        case HubTarget():
            return publish_to_hub(release, target)
        case MlflowTarget():
            return publish_to_mlflow(release, target)
