"""The hub: what a commit holds, the dry run, and the error where the hub cannot be reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from champions import MODEL_FILES, experiment, promote
from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from fim_core.champion.registry import champion
from fim_core.errors import FimError
from fim_core.publishing.hub import operations
from fim_core.publishing.publish import planned, publish_champion
from fim_core.publishing.release import release_of
from fim_core.store import Store


def test_a_commit_holds_the_model_and_removes_only_files_of_the_last_release(tmp_path: Path) -> None:
    store = Store(experiment(tmp_path).storage)
    release = release_of(promote(store, 1), store)
    parts = operations(release, {"experiment": "tiny", "files": {"config.json": {}, "model-2.safetensors": {}}})
    added = [part.path_in_repo for part in parts if isinstance(part, CommitOperationAdd)]
    assert sorted(added) == sorted([*MODEL_FILES, "champion.json"])
    removed = [part.path_in_repo for part in parts if isinstance(part, CommitOperationDelete)]
    assert removed == ["model-2.safetensors"]
    assert not [part for part in operations(release, None) if isinstance(part, CommitOperationDelete)]


def test_a_dry_run_reaches_nothing(tmp_path: Path) -> None:
    options = experiment(tmp_path, {"type": "hub", "repo": "org/orders"})
    store = Store(options.storage)
    made = promote(store, 1)
    (line,) = planned(options, store)
    assert line.startswith(f"hub repository org/orders: would publish {made.version}-")
    assert "5 files" in line


def test_a_hub_that_cannot_be_reached_is_an_error_and_the_champion_stays(tmp_path: Path) -> None:
    """The tests run with HF_HUB_OFFLINE."""
    options = experiment(tmp_path, {"type": "hub", "repo": "org/orders"})
    store = Store(options.storage)
    made = promote(store, 1)
    with pytest.raises(FimError, match=r"The hub does not accept org/orders .*`hf auth login`"):
        publish_champion(options, store)
    assert champion(store, "tiny") == made
