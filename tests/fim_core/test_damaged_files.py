"""Damaged files other than artifacts: each is refused with a clear error, or made again.

The files of artifacts are in tests/e2e/test_damage.py, training states in training/test_checkpoint.py, models in
serving/test_damage.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from damage import DAMAGES, damaged
from pack_helpers import to_rows

from fim_core.batch_cache import BatchCache
from fim_core.benchmark.build import ITEMS, SETTINGS, build_benchmark, read_benchmark
from fim_core.champion.registry import _write_withdrawn, withdrawn, withdrawn_file
from fim_core.config import Experiment
from fim_core.errors import DamagedFile, FimError
from fim_core.integrity import read_sealed, seal, unseal, write_sealed
from fim_core.packing import PackPlan, plan_packs
from fim_core.pipeline import stage_of
from fim_core.pipeline.checks import run_artifact_checks
from fim_core.store import OWNER, Store, version_of
from fim_core.training.failures import record_failure, recorded_failures
from fim_core.training.job import Job, TrainResult, Work
from fim_core.training.pack_plans import PackPlans
from fim_core.training.step_exports import LIST, StepExports

IN_ALL = (*DAMAGES, "missing")

EXPERIMENT: dict[str, Any] = {
    "name": "demo",
    "model": {"config": {"model_type": "qwen3"}, "tokenizer": "unused"},
    "data": {"sources": [{"type": "demo"}]},
}


@dataclass(frozen=True)
class Case:
    """A file and its reader."""

    file: Path
    read: Callable[[], Any]


def job_in(folder: Path) -> Job:
    checkpoint = [{"save_every_n_steps": 2, "output_dir": str(folder / "exports")}]
    experiment = Experiment.model_validate({**EXPERIMENT, "checkpoint": checkpoint})
    return Job(experiment, folder, folder, Work(folder / "work"), "attempt", {"data": "v1"})


def result_in(folder: Path) -> TrainResult:
    counts = dict.fromkeys(("steps", "epochs", "batch_rows", "rows", "packs", "tokens", "trained_tokens"), 3)
    counts |= {"distinct_tokens": 5, "warmup_steps": 0, "empty_steps": 0, "seconds": 1.5, "world_size": 1}
    losses = {"loss_before": 2.0, "loss_after": 1.0, "train_loss_last": None}
    return TrainResult(folder, resumed_from=None, packing="flat", notices=("a", "b"), **counts, **losses)


def a_job(folder: Path) -> Case:
    job = job_in(folder)
    return Case(job.write(), lambda: Job.read(job.work.job))


def a_result(folder: Path) -> Case:
    result_in(folder).write(folder / "result.json")
    return Case(folder / "result.json", lambda: TrainResult.read(folder / "result.json"))


def a_list_of_exports(folder: Path) -> Case:
    job = job_in(folder)
    exports = StepExports(job.experiment.checkpoint[0], job, "print")
    exports.begin(2).mkdir()
    exports.publish(2)
    return Case(exports.folder / LIST, exports.surplus)


def a_list_of_withdrawn_checkpoints(folder: Path) -> Case:
    store = Store(folder)
    _write_withdrawn(store, "demo", {"a checkpoint"})
    return Case(withdrawn_file(store, "demo"), lambda: withdrawn(store, "demo"))


REFUSED = [a_job, a_result, a_list_of_exports, a_list_of_withdrawn_checkpoints]


@pytest.mark.parametrize("make", REFUSED)
def test_files_that_cannot_be_made_again_are_refused(make: Callable[[Path], Case], tmp_path: Path) -> None:
    """4 files with 7 damages each: 28 cases."""
    case = make(tmp_path)
    whole = case.read()
    for damage in DAMAGES:
        with damaged(case.file, damage), pytest.raises(FimError) as caught:
            case.read()
        assert case.file.name in str(caught.value), damage
        assert len(str(caught.value).splitlines()) == 1
    assert case.read() == whole


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    build_benchmark(folder, items_per_kind=1, seed=5)
    return folder


def test_a_damaged_benchmark_is_refused(benchmark: Path) -> None:
    """2 files in 8 states: 16 cases. Items with other keys or types are damage as well."""
    for name in (ITEMS, SETTINGS):
        for damage in IN_ALL:
            with damaged(benchmark / name, damage), pytest.raises(FimError, match=f"{name} |no benchmark in"):
                read_benchmark(benchmark)
    assert len(read_benchmark(benchmark)[0]) == 5


def test_a_damaged_plan_is_planned_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """7 states, each with the plan of an undisturbed run afterwards; single bits follow in the next test."""
    rows = to_rows([([1, 2, 3, number], [-100, -100, -100, number]) for number in range(6)])
    plans, file = PackPlans(tmp_path), tmp_path / "epoch-0.parquet"
    made = []

    def plan() -> PackPlan:
        made.append(1)
        return plan_packs(rows, strategy="prefix_tree", pack_length=16, batch_rows=4)

    plans.make("epoch-0", plan, ranks=1)
    plans.make("epoch-0", plan, ranks=1)
    assert len(made) == 1
    whole = file.read_bytes()
    for damage in DAMAGES.keys() - {"one bit"}:
        file.write_bytes(DAMAGES[damage](whole))
        with pytest.raises(DamagedFile, match=r"epoch-0\.parquet is damaged"):
            PackPlan.read(file)
        plans.make("epoch-0", plan, ranks=1)
        assert file.read_bytes() == whole
        assert "planned again" in caplog.text
    file.unlink()
    plans.make("epoch-0", plan, ranks=1)
    assert file.read_bytes() == whole


def test_a_bit_anywhere_in_the_rows_of_a_plan_is_found(tmp_path: Path) -> None:
    rows = to_rows([([1, 2, 3, number], [-100, -100, -100, number]) for number in range(40)])
    whole = plan_packs(rows, strategy="none", pack_length=16, batch_rows=4)
    file = tmp_path / "plan.parquet"
    whole.write(file)
    content = file.read_bytes()
    missed = 0
    for place in range(0, len(content), 29):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            read = PackPlan.read(file)
        except DamagedFile:
            continue
        missed += not (np.array_equal(read.rows, whole.rows) and np.array_equal(read.lengths, whole.lengths))
    assert missed == 0


def test_a_damaged_batch_is_computed_again(tmp_path: Path) -> None:
    """8 states of a cached batch, and a bit flipped at some 30 of its bytes."""
    rows = pa.RecordBatch.from_pydict({"text": [f"select {number}" for number in range(20)]})
    cache, made = BatchCache(tmp_path, "identity"), []

    def make(batch: pa.RecordBatch) -> pa.RecordBatch:
        made.append(1)
        return batch

    def again() -> bool:
        found, was_made = cache.get_or_compute(rows, make)
        assert found.equals(rows)
        return was_made

    assert again()
    assert not again()
    [file] = tmp_path.glob("*.arrow")
    whole = file.read_bytes()
    for damage in IN_ALL:
        with damaged(file, damage):
            assert again(), damage
            assert file.read_bytes() == whole
    for place in range(0, len(whole), len(whole) // 30):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        assert again(), place
    assert not again()


def test_damaged_results_of_checks_are_found_again(tmp_path: Path) -> None:
    """8 states. None of them may pass for results without a failure."""
    store = Store(tmp_path)
    identity: dict[str, Any] = {"inputs": {}, "config": {}, "code": "1"}
    with store.publish("evaluation_report", experiment="demo", **identity) as draft:
        (draft.path / "report.json").write_text(
            '{"loss": NaN, "power": {"enough": true, "smallest_gain": {}, "sentence": ""}}'
        )
    artifact = store.find("evaluation_report", version_of(**identity))
    assert artifact is not None
    experiment = Experiment.model_validate(EXPERIMENT)
    whole = run_artifact_checks(stage_of(artifact.asset), artifact, experiment, store, stage_of)
    assert [result.passed for result in whole if result.name == "finite_numbers"] == [False]
    [file] = (tmp_path / "checks" / "evaluation_report").glob("*.json")
    content = file.read_bytes()
    for damage in IN_ALL:
        with damaged(file, damage):
            assert run_artifact_checks(stage_of(artifact.asset), artifact, experiment, store, stage_of) == whole, damage
            assert file.read_bytes() == content


def test_a_damaged_record_of_a_failure_hides_no_other(tmp_path: Path) -> None:
    """8 states."""
    job = job_in(tmp_path)
    for rank in range(2):
        record_failure(job, rank, FimError(f"of rank {rank}"))
    for damage in IN_ALL:
        with damaged(job.work.failure(job.attempt, 0), damage):
            messages = [failure.message for failure in recorded_failures(job)]
            assert messages[-1] == "of rank 1", damage
            assert len(messages) == 1 or damage == "one bit"


def test_a_damaged_owner_file_is_ignored(tmp_path: Path) -> None:
    """8 states."""
    store = Store(tmp_path)
    identity: dict[str, Any] = {"inputs": {"exports": "a"}, "config": {}, "code": "1"}
    with store.publish("raw_completions", experiment="demo", **identity):
        [(folder, owner)] = store.drafts()
        assert owner is not None
        assert owner.inputs == identity["inputs"]
        for damage in IN_ALL:
            with damaged(folder / OWNER, damage):
                [(_, found)] = store.drafts()
                assert found is None or damage == "one bit"


def test_a_seal_matches_only_the_sealed_content(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": (1, 2.5), "ü": None, "nested": {10: "x", 9: float("inf")}}
    path = tmp_path / "file.json"
    write_sealed(path, content)
    assert read_sealed(path) == {"a": [1, 2.5], "ü": None, "nested": {"10": "x", "9": float("inf")}}
    assert unseal(seal({"a": 1}) | {"a": 2}) is None
    assert unseal({"a": 1}) is None
    assert unseal([]) is None
