"""Versions: identity, reuse, concurrency and changing inputs."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from tiny_pipeline import TINY, write_experiment

from fim_core.config import Experiment, load_experiment
from fim_core.errors import FimError
from fim_core.pipeline import Stage, StageResult, run_stage, stage_of
from fim_core.pipeline.checks import run_artifact_checks
from fim_core.pipeline.stages.fim_prompts import fim_prompts
from fim_core.pipeline.stages.raw_completions import raw_completions
from fim_core.records import sources
from fim_core.store import Artifact, Store


def test_an_export_that_grows_while_it_is_read_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = tmp_path / "export.csv"
    row = '"{""query"": ""select <fillMe>""}",1\n'
    export.write_text("INPUT,OUTPUT\n" + row)
    path = write_experiment(tmp_path, data={**TINY["data"], "sources": [{"name_or_path": str(export)}]})
    experiment = load_experiment(path)
    store = Store(experiment.storage)
    read = sources.write_raw_completions

    def read_while_it_grows(*arguments: object) -> object:
        counts = read(*arguments)  # type: ignore[arg-type]
        with export.open("a") as file:
            file.write(row)
        return counts

    monkeypatch.setattr(sources, "write_raw_completions", read_while_it_grows)
    with pytest.raises(FimError, match=r"changed while it was being made \(exports\)"):
        run_stage(raw_completions, experiment, store, upstream_of=stage_of)
    assert store.versions("raw_completions") == []
    assert store.drafts() == []

    monkeypatch.undo()
    result = run_stage(raw_completions, experiment, store, upstream_of=stage_of)
    assert result.artifact.counts["rows"] == 2


def test_an_asset_made_again_by_force_makes_downstream_assets_again(tmp_path: Path) -> None:
    experiment = load_experiment(write_experiment(tmp_path))
    store = Store(experiment.storage)

    def materialize(stage: Stage, force: bool = False) -> StageResult:
        return run_stage(stage, experiment, store, upstream_of=stage_of, force=force)

    materialize(raw_completions)
    first = materialize(fim_prompts)
    assert materialize(fim_prompts).reused
    assert not materialize(raw_completions, force=True).reused
    again = materialize(fim_prompts)
    assert not again.reused
    assert again.artifact.version == first.artifact.version
    assert materialize(fim_prompts).reused


def test_an_input_that_was_made_while_the_clock_was_ahead_is_used_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(write_experiment(tmp_path))
    store = Store(experiment.storage)

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(days=400)

    def materialize(stage: Stage, force: bool = False) -> StageResult:
        return run_stage(stage, experiment, store, upstream_of=stage_of, force=force)

    monkeypatch.setattr("fim_core.store.publish.datetime", Ahead)
    materialize(raw_completions)
    monkeypatch.undo()
    assert not materialize(fim_prompts).reused
    assert materialize(fim_prompts).reused
    assert not materialize(raw_completions, force=True).reused
    assert not materialize(fim_prompts).reused
    assert materialize(fim_prompts).reused


def test_an_input_that_is_made_again_while_it_is_used_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the artifact that was made from it is newer."""
    experiment = load_experiment(write_experiment(tmp_path))
    store = Store(experiment.storage)

    def materialize(stage: Stage, force: bool = False) -> StageResult:
        return run_stage(stage, experiment, store, upstream_of=stage_of, force=force)

    materialize(raw_completions)
    meanwhile = replace(
        fim_prompts,
        build=lambda build: (materialize(raw_completions, force=True), fim_prompts.build(build))[1],
    )
    assert not materialize(meanwhile).reused
    assert not materialize(fim_prompts).reused
    assert materialize(fim_prompts).reused


def test_a_page_that_cannot_be_written_fails_only_a_new_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A version that is reused may belong to somebody else."""
    experiment = load_experiment(write_experiment(tmp_path))
    store = Store(experiment.storage)

    def refuse(artifact: Artifact, *_: object) -> None:
        raise PermissionError(13, "Permission denied")

    presented = replace(raw_completions, present=refuse)
    with pytest.raises(PermissionError):
        run_stage(presented, experiment, store, upstream_of=stage_of)
    assert run_stage(presented, experiment, store, upstream_of=stage_of).reused
    assert "could not be brought up to date (Permission denied)" in caplog.text


def test_two_runs_of_the_same_work_do_it_once(tmp_path: Path) -> None:
    experiment = load_experiment(write_experiment(tmp_path))
    store = Store(experiment.storage)

    def materialize(_: int) -> StageResult:
        return run_stage(raw_completions, experiment, store, upstream_of=stage_of)

    with ThreadPoolExecutor(2) as pool:
        assert sorted(result.reused for result in pool.map(materialize, range(2))) == [False, True]


def test_threads_that_check_one_artifact_remember_the_same(tmp_path: Path) -> None:
    experiment = load_experiment(write_experiment(tmp_path))
    store = Store(experiment.storage)
    artifact = run_stage(raw_completions, experiment, store, upstream_of=stage_of).artifact
    expected = run_artifact_checks(raw_completions, artifact, experiment, store, stage_of)
    for _ in range(5):
        shutil.rmtree(store.root / "checks")
        with ThreadPoolExecutor(4) as pool:
            found = list(
                pool.map(
                    lambda _: run_artifact_checks(raw_completions, artifact, experiment, store, stage_of), range(4)
                )
            )
        assert found == [expected] * 4


def test_two_files_with_the_same_name_are_different_experiments(tmp_path: Path) -> None:
    paths = []
    for team in ("a", "b"):
        (tmp_path / team).mkdir()
        paths.append(write_experiment(tmp_path / team, name=None, storage=str(tmp_path / "store")))
    first, second = map(load_experiment, paths)
    store = Store(first.storage)

    def materialize(experiment: Experiment) -> StageResult:
        return run_stage(raw_completions, experiment, store, upstream_of=stage_of)

    materialize(first)
    with pytest.raises(
        FimError, match=r"b/tiny\.yaml and a file of the same name in another folder use the same storage"
    ):
        materialize(second)
    named = write_experiment(tmp_path / "b", storage=str(tmp_path / "store"), name="tiny")
    assert materialize(load_experiment(named)).reused, "a name that is given is meant"
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "a", moved / "a")
    shutil.copytree(tmp_path / "store", moved / "store", symlinks=True)
    both = load_experiment(write_experiment(moved / "a", name=None, storage=str(moved / "store")))
    assert run_stage(raw_completions, both, Store(both.storage), upstream_of=stage_of).reused
