"""Garbage collection keeps what may still be needed, and removes everything else."""

from __future__ import annotations

import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fim_core.atomic import write_json
from fim_core.champion.registry import withdrawn_file
from fim_core.cli.main import app
from fim_core.pipeline.garbage import find_garbage, remove
from fim_core.store import OWNER, Artifact, Store, version_of


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
    """A data set and the checkpoint that was trained on it."""
    data = make(store, "tokenized_dataset", number)
    return data, make(store, "trained_checkpoint", number, {"tokenized_dataset": data.version})


def left(store: Store) -> set[str]:
    return {
        artifact.version for asset in ("tokenized_dataset", "trained_checkpoint") for artifact in store.versions(asset)
    }


def test_recent_checkpoints_keep_their_inputs(store: Store) -> None:
    generations = [generation(store, number) for number in range(3)]
    store.use(generations[2][1], "demo")
    garbage = find_garbage(store, keep_checkpoints=2, fresh_minutes=0)
    assert {entry.path for entry in garbage} == {artifact.path for artifact in generations[0]}
    remove(store, garbage)
    assert left(store) == {artifact.version for pair in generations[1:] for artifact in pair}


def test_champions_keep_their_checkpoint_and_data(store: Store) -> None:
    old, new = generation(store, 0), generation(store, 1)
    champion = make(
        store, "champion_model", 0, {"trained_checkpoint": old[1].version, "champion": "none"}, promote=True
    )
    store.use(champion, "demo")
    store.use(new[1], "demo")
    assert find_garbage(store, keep_checkpoints=1, fresh_minutes=0) == []


def test_refused_candidates_keep_nothing(store: Store) -> None:
    old, new = generation(store, 0), generation(store, 1)
    refused = make(
        store, "champion_model", 0, {"trained_checkpoint": old[1].version, "champion": "none"}, promote=False
    )
    store.use(new[1], "demo")
    paths = {entry.path for entry in find_garbage(store, keep_checkpoints=1, fresh_minutes=0)}
    assert paths == {refused.path, *(artifact.path for artifact in old)}


def champions(store: Store, count: int) -> list[tuple[Artifact, Artifact, Artifact]]:
    """Each with its data set and checkpoint, and with the previous one as the champion to beat."""
    made: list[tuple[Artifact, Artifact, Artifact]] = []
    for number in range(count):
        data, checkpoint = generation(store, number)
        before = made[-1][2].version if made else "none"
        inputs = {"trained_checkpoint": checkpoint.version, "champion": before}
        made.append((data, checkpoint, make(store, "champion_model", number, inputs, promote=True)))
        store.use(made[-1][2], "demo")
        store.use(checkpoint, "demo")
    return made


def test_old_champions_are_removed(store: Store) -> None:
    made = champions(store, 4)
    paths = {entry.path for entry in find_garbage(store, keep_checkpoints=1, keep_champions=3, fresh_minutes=0)}
    assert paths == {artifact.path for artifact in made[0]}


def test_the_rollback_target_is_always_kept(store: Store) -> None:
    made = champions(store, 5)
    store.use(made[2][2], "demo")
    paths = {entry.path for entry in find_garbage(store, keep_checkpoints=1, keep_champions=1, fresh_minutes=0)}
    assert paths == {artifact.path for number in (0, 3) for artifact in made[number]}


def test_an_experiment_to_forget_keeps_nothing_but_what_another_uses(store: Store) -> None:
    made = champions(store, 2)
    other = make(store, "trained_checkpoint", 9)
    for asset in (made[0][0], other):
        store.use(asset, "other")
    store.use(made[1][1], "demo")
    write_json(withdrawn_file(store, "demo"), ["some checkpoint"])
    # However new they are: nobody is going to use them.
    remove(store, find_garbage(store, forget=["demo"]))
    assert left(store) == {other.version, made[0][0].version}
    assert store.versions("champion_model") == []
    assert {link.name for link in store.links_by_experiment()} == {"other"}
    assert not withdrawn_file(store, "demo").exists()
    assert store.current("trained_checkpoint").version == other.version
    assert not (store.root / "champion_model" / "current").is_symlink()
    assert find_garbage(store, forget=["demo"], fresh_minutes=0) == []


def test_the_version_that_another_experiment_used_last_stays_current(store: Store) -> None:
    """Although the experiment that made it is to be forgotten."""
    shared = make(store, "trained_checkpoint", 0)
    for name in ("demo", "other"):
        store.use(shared, name)
    remove(store, find_garbage(store, forget=["demo"]))
    assert store.current("trained_checkpoint").version == shared.version


def test_an_experiment_can_be_forgotten_when_its_links_are_gone(store: Store) -> None:
    made = champions(store, 2)
    for link in store.links_by_experiment():
        link.unlink()
    result = CliRunner().invoke(app, ["gc", "--storage", str(store.root), "--forget", "demo", "--delete"])
    assert result.exit_code == 0, result.output
    assert left(store) == set()
    assert made


def test_check_results_are_removed_with_their_version(store: Store) -> None:
    old, new = generation(store, 0), generation(store, 1)
    store.use(new[1], "demo")
    for artifact in (*old, *new):
        write_json(store.root / "checks" / artifact.asset / f"{artifact.version}-{16 * '1'}.json", [])
    # An abandoned attempt at making a version again is no version.
    os.utime(store.work_folder(new[1].asset, new[1].version), (0, 0))
    remove(store, find_garbage(store, keep_checkpoints=1, fresh_minutes=0))
    assert not (store.root / "work" / new[1].asset / new[1].version).exists()
    kept = {file.name for file in (store.root / "checks").rglob("*.json")}
    assert kept == {f"{artifact.version}-{16 * '1'}.json" for artifact in new}


def test_the_command_reports_an_unknown_experiment(store: Store) -> None:
    champions(store, 1)
    result = CliRunner().invoke(app, ["gc", "--storage", str(store.root), "--forget", "dmeo"])
    assert result.exit_code != 0
    assert "dmeo" in str(result.exception)


def test_inputs_of_an_active_run_are_kept(store: Store) -> None:
    old, new = generation(store, 0), generation(store, 1)
    store.use(new[1], "demo")
    identity = {"inputs": {"tokenized_dataset": old[0].version}, "config": {}, "code": "1"}
    with store.publish("trained_checkpoint", experiment="demo", **identity):
        paths = {entry.path for entry in find_garbage(store, keep_checkpoints=1, fresh_minutes=0)}
    assert old[0].path not in paths
    assert old[1].path in paths


def test_leftovers_of_a_dead_run_are_removed_and_a_recent_attempt_is_kept(store: Store) -> None:
    publishing = store.publish("raw_completions", experiment="demo", inputs={}, config={}, code="1")
    draft = publishing.__enter__()
    owner = draft.path.with_name(OWNER)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    owner.write_text(owner.read_text().replace(str(os.getpid()), str(child)))
    recent, old = (store.work_folder("trained_checkpoint", 16 * digit) for digit in "01")
    training = store.work_folder("trained_checkpoint", 16 * "2")
    (training / "progress").touch()
    month_ago = time.time() - 30 * 24 * 3600
    for folder in (old, training):
        os.utime(folder, (month_ago, month_ago))
    assert {entry.path for entry in find_garbage(store, fresh_minutes=0)} == {draft.path.parent, old}
    assert recent.is_dir()


def test_an_active_attempt_is_kept_however_old(store: Store) -> None:
    folder = store.work_folder("trained_checkpoint", 16 * "a")
    with store.making("trained_checkpoint", folder.name):
        assert find_garbage(store, work_days=0) == []
    assert [entry.path for entry in find_garbage(store, work_days=0)] == [folder]


def test_an_interrupted_removal_leaves_no_version_that_looks_intact(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make(store, "raw_completions", 0)

    def cut_off(folder: Path) -> None:
        (folder / "content").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", cut_off)
    with pytest.raises(KeyboardInterrupt):
        store.remove(artifact.path)
    monkeypatch.undo()
    assert store.find("raw_completions", artifact.version) is None
    [left] = (store.root / "tmp").iterdir()
    day_before_yesterday = time.time() - 2 * 24 * 3600
    for path in (*left.iterdir(), left):
        os.utime(path, (day_before_yesterday, day_before_yesterday))
    assert [entry.path for entry in find_garbage(store)] == [left]


def test_new_versions_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing refers to a version between its publication and its first use."""
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    with monkeypatch.context() as clock:
        clock.setattr("fim_core.store.publish.datetime", SimpleNamespace(now=lambda zone: long_ago))
        old = make(store, "raw_completions", 0)
    make(store, "raw_completions", 1)
    assert [entry.path for entry in find_garbage(store)] == [old.path]


def test_the_command_removes_only_with_delete(store: Store) -> None:
    old, new = generation(store, 0), generation(store, 1)
    store.use(new[1], "demo")
    arguments = ["gc", "--storage", str(store.root), "--keep-checkpoints", "1", "--fresh-minutes", "0"]
    dry = CliRunner().invoke(app, arguments)
    assert dry.exit_code == 0, dry.output
    assert old[0].version in dry.output
    assert "2 entries" in dry.output
    assert left(store) == {artifact.version for artifact in (*old, *new)}
    CliRunner().invoke(app, [*arguments, "--delete"])
    assert left(store) == {artifact.version for artifact in new}


def test_the_command_finds_the_storage_of_an_experiment(store: Store, tmp_path: Path) -> None:
    old, new = generation(store, 0), generation(store, 1)
    store.use(new[1], "demo")
    path = tmp_path / "own.yaml"
    path.write_text(f"storage: {store.root}\nmodel: {{name_or_path: m}}\ndata: {{sources: [{{type: demo}}]}}")
    options = ["--keep-checkpoints", "1", "--fresh-minutes", "0"]
    dry = CliRunner().invoke(app, ["gc", "--experiment", str(path), *options])
    assert old[0].version in dry.output
    assert "2 entries" in dry.output


def test_cached_batches_that_no_build_used_go(store: Store) -> None:
    folder = store.folder("batch_cache", "fim_prompts")
    old, new = (f"{64 * digit}.arrow" for digit in "01")
    for name, days in ((old, 20), (new, 1), (f".{old}-1-{8 * 'a'}", 20)):
        (folder / name).write_text("x" * 10)
        used = time.time() - days * 24 * 60 * 60
        os.utime(folder / name, (used, used))
    (entry,) = find_garbage(store, work_days=14)
    assert (entry.path, entry.bytes) == (folder, 20)
    assert "2 cached batches that no build has used for 14 days" in entry.reason
    remove(store, [entry])
    assert [path.name for path in folder.iterdir()] == [new]
    assert find_garbage(store, work_days=14) == []
