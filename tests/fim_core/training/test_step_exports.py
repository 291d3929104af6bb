"""Exports of steps to a folder of the user, and states of a run: only what the run wrote is removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from foreign_files import changed, fill, snapshot
from rank_functions import whole_run
from training_helpers import run_ranks, tiny_experiment

from fim_core.errors import FimError
from fim_core.training.job import Job, Work
from fim_core.training.step_exports import LIST, StepExports
from fim_core.training.trackers import EventLog


def job_in(work: Path, output: Path, *, keep: int = 1, dataset: Path = Path(), tokenizer: Path = Path()) -> Job:
    checkpoint = [{"save_every_n_steps": 2, "output_dir": str(output), "keep": keep}]
    return Job(tiny_experiment(max_steps=4, checkpoint=checkpoint), dataset, tokenizer, Work(work), "test")


def exports_of(job: Job, fingerprint: str = "print") -> StepExports:
    return StepExports(job.experiment.checkpoint[0], job, fingerprint)


def write(exports: StepExports, step: int) -> None:
    """Export a step and remove surplus exports, as the training loop does."""
    scratch = exports.begin(step)
    scratch.mkdir()
    (scratch / "weights").write_text(f"weights of {step}")
    exports.publish(step)
    for old in exports.surplus():
        exports.remove(old)


def named_in(metrics: Path) -> dict[str, bool]:
    """Every export that the events name, and whether it is there by what they say."""
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    return {event["path"]: event["event"] == "checkpoint" for event in events if "path" in event}


def test_training_leaves_foreign_files_as_they_are(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    """In `output_dir` and among the run's states, with an older run's later step in both."""
    output, work = tmp_path / "output", tmp_path / "work"
    fill(output, tmp_path / "outside")
    fill(work / "state", tmp_path / "outside of the state")
    before = snapshot(tmp_path)
    job = job_in(work, output, dataset=dataset, tokenizer=tokenizer_folder)
    run_ranks(1, whole_run, job, folder=work)
    assert changed(before, tmp_path) == []
    own = output / "tiny-work"
    assert sorted(path.name for path in own.iterdir()) == [LIST, "step-4"]
    assert (own / "step-4" / "model.safetensors").is_file()
    assert named_in(job.work.metrics) == {"tiny-work/step-2": False, "tiny-work/step-4": True}
    assert sorted(path.parent.name for path in (work / "state").glob("*/deepspeed")) == ["step-4", "step-7"]


def test_the_newest_export_stays_whatever_its_step(tmp_path: Path) -> None:
    """As when a run is made again from its beginning."""
    exports = exports_of(job_in(tmp_path / "work", tmp_path / "output"))
    write(exports, 1000)
    write(exports, 2)
    assert sorted(path.name for path in exports.folder.iterdir()) == [LIST, "step-2"]
    assert (exports.folder / "step-2" / "weights").read_text() == "weights of 2"


def test_a_resumed_run_continues_its_list(tmp_path: Path) -> None:
    job = job_in(tmp_path / "work", tmp_path / "output", keep=2)
    for step in (2, 4):
        write(exports_of(job), step)
    # Killed while step 6 was written, and then resumed from before step 4.
    (exports_of(job).begin(6) / "half").mkdir(parents=True)
    for step in (4, 6, 8):
        write(exports_of(job), step)
    assert sorted(path.name for path in exports_of(job).folder.iterdir()) == [LIST, "step-6", "step-8"]


@pytest.mark.parametrize("kind", ["files", "a link", "another run's list", "a damaged list", "a linked list"])
def test_a_folder_that_is_not_the_runs_is_refused(kind: str, tmp_path: Path) -> None:
    exports = exports_of(job_in(tmp_path / "work", tmp_path / "output"))
    (tmp_path / "elsewhere").mkdir()
    if kind == "a link":
        (tmp_path / "output").mkdir()
        exports.folder.symlink_to(tmp_path / "elsewhere")
    else:
        (exports.folder / "step-2").mkdir(parents=True)
        lists = {"another run's list": '{"fingerprint": "other", "exports": ["step-2"]}', "a damaged list": "{"}
        if kind in lists:
            (exports.folder / LIST).write_text(lists[kind])
        if kind == "a linked list":
            (exports.folder / LIST).symlink_to(tmp_path / "elsewhere")
    before = snapshot(tmp_path)
    with pytest.raises(FimError, match="is not the folder of this run"):
        exports.require_own()
    with pytest.raises(FimError, match="is not the folder of this run"):
        exports.begin(2)
    assert changed(before, tmp_path) == []


@pytest.mark.parametrize("name", ["step-7", ".step-7"])
def test_a_foreign_step_among_the_exports_is_not_replaced(name: str, tmp_path: Path) -> None:
    exports = exports_of(job_in(tmp_path / "work", tmp_path / "output"))
    write(exports, 2)
    (exports.folder / name).mkdir()
    (exports.folder / name / "weights").write_text("of somebody else")
    before = snapshot(tmp_path)
    with pytest.raises(FimError, match="was not written by this run"):
        exports.begin(7)
    write(exports, 4)
    assert [path for path in changed(before, tmp_path) if "step-7" in path] == []


def test_removals_after_the_resumed_step_stay_in_the_log(tmp_path: Path) -> None:
    """The lost attempt exported step 6 and removed step 4; the next one resumes from step 5."""
    metrics = tmp_path / "metrics.jsonl"
    log = EventLog(metrics, [], None)
    entries: list[tuple[str, int, dict[str, Any]]] = [
        ("checkpoint", 4, {"path": "step-4"}),
        ("step", 6, {}),
        ("checkpoint", 6, {"path": "step-6"}),
        ("removed", 6, {"path": "step-4"}),
    ]
    for event, step, content in entries:
        log.write(event, step, **content)
    log.close()
    EventLog(metrics, [], 5).close()
    assert named_in(metrics) == {"step-4": False}
    assert "step-6" not in metrics.read_text()


def test_two_entries_cannot_share_a_folder(tmp_path: Path) -> None:
    entry = {"save_every_n_steps": 2, "output_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="two entries have the same output_dir"):
        tiny_experiment(checkpoint=[entry, entry | {"save_every_n_steps": 3}])
