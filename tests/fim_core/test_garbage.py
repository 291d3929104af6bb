"""Collection keeps all that somebody may still need, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fim_core.garbage import find_garbage, remove
from fim_core.store import Artifact, Store, version_of


def make(store: Store, asset: str, number: int, inputs: dict[str, str] | None = None, **counts: object) -> Artifact:
    identity = {"inputs": inputs or {}, "config": {"number": number}, "code": "1"}
    with store.publish(asset, experiment="demo", **identity) as draft:
        (draft.path / "content").write_text("x" * 1000)
        draft.counts.update(counts)
    artifact = store.find(asset, version_of(**identity))
    assert artifact is not None
    return artifact


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def generation(store: Store, number: int) -> tuple[Artifact, Artifact]:
    """A data set and the checkpoint trained on it."""
    data = make(store, "tokenized_dataset", number)
    return data, make(store, "trained_checkpoint", number, {"tokenized_dataset": data.version})


def left(store: Store) -> set[str]:
    return {
        artifact.version for asset in ("tokenized_dataset", "trained_checkpoint") for artifact in store.versions(asset)
    }


def test_recent_checkpoints_keep_what_they_were_made_from(store: Store) -> None:
    generations = [generation(store, number) for number in range(3)]
    store.use(generations[2][1], "demo")
    garbage = find_garbage(store, keep_checkpoints=2)
    assert {entry.path for entry in garbage} == {artifact.path for artifact in generations[0]}
    remove(garbage)
    assert left(store) == {artifact.version for pair in generations[1:] for artifact in pair}


def test_champions_keep_their_checkpoint_and_data(store: Store) -> None:
    old, new = generation(store, 0), generation(store, 1)
    champion = make(
        store, "champion_model", 0, {"trained_checkpoint": old[1].version, "champion": "none"}, promote=True
    )
    store.use(champion, "demo")
    store.use(new[1], "demo")
    assert find_garbage(store, keep_checkpoints=1) == []


def test_refused_candidates_keep_nothing(store: Store) -> None:
    old, new = generation(store, 0), generation(store, 1)
    refused = make(
        store, "champion_model", 0, {"trained_checkpoint": old[1].version, "champion": "none"}, promote=False
    )
    store.use(new[1], "demo")
    paths = {entry.path for entry in find_garbage(store, keep_checkpoints=1)}
    assert paths == {refused.path, *(artifact.path for artifact in old)}


def test_inputs_of_a_run_under_way_are_kept(store: Store) -> None:
    old, new = generation(store, 0), generation(store, 1)
    store.use(new[1], "demo")
    identity = {"inputs": {"tokenized_dataset": old[0].version}, "config": {}, "code": "1"}
    with store.publish("trained_checkpoint", experiment="demo", **identity):
        paths = {entry.path for entry in find_garbage(store, keep_checkpoints=1)}
    assert old[0].path not in paths
    assert old[1].path in paths


def test_what_a_dead_run_left_goes_and_a_recent_attempt_stays(store: Store) -> None:
    publishing = store.publish("raw_completions", experiment="demo", inputs={}, config={}, code="1")
    draft = publishing.__enter__()
    lease = draft.path / ".lease.json"
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    lease.write_text(lease.read_text().replace(str(os.getpid()), str(child)))
    recent, old = store.work_folder("trained_checkpoint", "recent"), store.work_folder("trained_checkpoint", "old")
    month_ago = time.time() - 30 * 24 * 3600
    os.utime(old, (month_ago, month_ago))
    assert {entry.path for entry in find_garbage(store)} == {draft.path, old}
    assert recent.is_dir()


def test_parts_that_no_build_used_go(store: Store) -> None:
    folder = store.root / "parts" / "fim_prompts"
    folder.mkdir(parents=True)
    for name, days in (("old.arrow", 20), ("new.arrow", 1), (".old.arrow-1-ab", 20)):
        (folder / name).write_text("x" * 10)
        used = time.time() - days * 24 * 60 * 60
        os.utime(folder / name, (used, used))
    (entry,) = find_garbage(store, work_days=14)
    assert (entry.path, entry.bytes) == (folder, 20)
    assert "2 parts that no build has used for 14 days" in entry.reason
    remove([entry])
    assert [path.name for path in folder.iterdir()] == ["new.arrow"]
    assert find_garbage(store, work_days=14) == []
