"""`fim estimate`: the longest row, the smallest change, the refusal, and the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from estimate_helpers import experiment_of, gpu_of
from hypothesis import given
from hypothesis import strategies as st
from tiny_pipeline import write_experiment
from typer.testing import CliRunner

from fim_core.cli.main import app
from fim_core.cli.pipeline import run_pipeline
from fim_core.config import Experiment, load_experiment
from fim_core.errors import FimError
from fim_core.folders.tokenized import IGNORE_INDEX
from fim_core.packing import Rows
from fim_core.packing.rows import FlatColumn
from fim_core.training.estimate.changes import Choices, smallest_change
from fim_core.training.estimate.estimate import ROW_STEP, Estimate, Estimator, longest_that_fits
from fim_core.training.estimate.machine import parse_memory

MIB = 2**20


def estimate_of(experiment: Experiment, memory: int, ranks: int = 1) -> Estimate:
    estimator = Estimator(experiment, gpu_of(memory), ranks)
    return estimator.estimate(estimator.assumed_workload(), utilization=0.4)


def rows_of(lengths: list[int]) -> Rows:
    tokens = np.zeros(sum(lengths), np.int32)
    labels = np.where(np.arange(len(tokens)) % 4 == 0, 0, IGNORE_INDEX).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Rows(FlatColumn((tokens,)), FlatColumn((labels,)), offsets, [str(row) for row in range(len(lengths))])


@given(st.integers(0, 10**6), st.floats(0, 50), st.floats(0, 1e-3), st.integers(0, 10**7), st.integers(1, 20_000))
def test_the_longest_row_is_that_of_trying_all(fixed: int, slope: float, bend: float, limit: int, most: int) -> None:
    def size(tokens: int) -> int:
        return int(fixed + slope * tokens + bend * tokens**2)

    fitting = [rows for rows in range(ROW_STEP, max(ROW_STEP, most) + 1, ROW_STEP) if size(rows) <= limit]
    assert longest_that_fits(size, limit, most) == max(fitting, default=0)


def test_the_longest_row_fits_and_a_longer_one_does_not() -> None:
    experiment = experiment_of("qwen3", data={"sources": [{"type": "demo"}], "max_length": 65_536})
    machine = gpu_of(64 * MIB)
    estimator = Estimator(experiment, machine, 1)
    workload = estimator.assumed_workload()
    longest = estimator.longest_row(workload)
    memory = estimator._memory(experiment, workload)
    assert 0 < longest < 65_536
    assert memory.of(workload.row(longest)).total <= machine.memory
    assert memory.of(workload.row(longest + ROW_STEP)).total > machine.memory


def test_the_first_single_change_that_suffices_is_the_smallest() -> None:
    experiment = experiment_of("qwen3")
    choices = Choices(ranks=4, heads=4, tiles=True, on_gpu=True, sharded=True)
    tried = []

    def fits(changed: Experiment) -> bool:
        tried.append(changed)
        return changed.sequence_parallel_size == 2

    change = smallest_change(experiment, choices, fits)
    assert change is not None
    assert change.options == {"sequence_parallel_size": "2"}
    assert [each.sequence_parallel_size for each in tried[:-1]] == [1] * (len(tried) - 1)


def test_changes_add_up_if_none_suffices_alone() -> None:
    def fits(changed: Experiment) -> bool:
        return changed.activation_checkpointing and changed.tiled_mlp_compute

    choices = Choices(ranks=1, heads=4, tiles=True, on_gpu=True, sharded=True)
    change = smallest_change(experiment_of("qwen3"), choices, fits)
    assert str(change) == "activation_checkpointing: true, tiled_mlp_compute: true"
    assert smallest_change(experiment_of("qwen3"), choices, lambda _: False) is None


def test_changes_that_are_not_needed_are_left_out() -> None:
    def fits(changed: Experiment) -> bool:
        return changed.activation_checkpointing and changed.sequence_parallel_size == 4

    choices = Choices(ranks=4, heads=4, tiles=True, on_gpu=True, sharded=True)
    change = smallest_change(experiment_of("qwen3"), choices, fits)
    assert change is not None
    assert change.options == {"activation_checkpointing": "true", "sequence_parallel_size": "4"}


def test_ranks_that_sequences_cannot_be_divided_among_are_refused(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, sequence_parallel_size=2)
    with pytest.raises(FimError, match="3 ranks are not a multiple"):
        CliRunner().invoke(app, ["estimate", str(path), "--gpus", "3"], catch_exceptions=False)


def test_the_smallest_change_makes_the_run_fit() -> None:
    experiment = experiment_of("qwen3", layers=12, data={"sources": [{"type": "demo"}], "max_length": 8192})
    whole = estimate_of(experiment, 2**40).memory.total
    found = estimate_of(experiment, whole * 2 // 3)
    assert not found.fits
    assert found.change is not None
    assert estimate_of(found.change.experiment, whole * 2 // 3).fits


def test_packs_that_are_too_large_are_shortened_first() -> None:
    data = {"sources": [{"type": "demo"}], "max_length": 1024, "pack_length": 65_536}
    experiment = experiment_of("qwen3", data=data, batch_rows=64)
    enough = estimate_of(experiment_of("qwen3", data={**data, "pack_length": 4096}, batch_rows=64), 2**40)
    found = estimate_of(experiment, enough.memory.total)
    assert found.change is not None
    assert list(found.change.options) == ["data.pack_length"]
    assert 1024 <= int(found.change.options["data.pack_length"]) <= 4096
    assert estimate_of(found.change.experiment, enough.memory.total).fits


def test_a_run_that_cannot_fit_is_refused_in_one_sentence_with_the_cure() -> None:
    experiment = experiment_of("qwen3", layers=12)
    rows = rows_of([300, 7000, 40])
    enough = Estimator(experiment, gpu_of(2**40), 1)
    memory = enough.estimate(enough.workload_of(rows), 0.4).memory.total
    Estimator(experiment, gpu_of(memory), 1).require_fit(enough.workload_of(rows))
    estimator = Estimator(experiment, gpu_of(memory // 2), 1)
    with pytest.raises(FimError) as refusal:
        estimator.require_fit(estimator.workload_of(rows))
    said = str(refusal.value)
    assert re.match(r"A pack of 7,\d{3} tokens needs about [\d.]+ GiB on ", said)
    assert "GiB are free on a GPU" in said
    assert "activation_checkpointing: true" in said


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GB", 80 * 10**9), ("80 GiB", 80 * 2**30), ("24", 24 * 10**9), ("1.5gb", 1_500_000_000), ("2048MiB", 2**31)],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert parse_memory(text) == size


def run(*arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["estimate", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command_shows_components_and_counts_the_rows_that_exist(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    run_pipeline(load_experiment(path), until="tokenized_dataset")
    code, text = run(path, "--gpu-memory", "24GB", "--gpus", 2)
    assert code == 0
    for part in ("weights", "optimizer states", "activations", "output layer", "overhead", "It fits", "hours"):
        assert part in text
    assert "rows of the tokenized_dataset" in text
    code, text = run(path, "--json")
    figures = json.loads(text)
    assert figures["fits"]
    assert sum(figures["memory"].values()) == figures["total"]
    assert figures["rows"] > 0
    assert figures["hours"] > 0


def test_hours_follow_from_tokens_and_utilization(tmp_path: Path) -> None:
    path = write_experiment(tmp_path)
    options = (path, "--json", "--tokens", 10**9, "--rows", 10**6)
    hours = [json.loads(run(*options, "--utilization", share)[1])["hours"] for share in (0.2, 0.4)]
    assert hours[0] == pytest.approx(2 * hours[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gpu", "H2000"), "--gpu H2000 is unknown"),
        (("--gpu-memory", "much"), "is not a size"),
        (("--gpu-memory", "1GB"), "more than the 1.0 GiB of its own context"),
        (("--rows", "5"), "--rows needs --tokens"),
        (("--rows", "50", "--tokens", "10"), "not possible for --rows 50"),
    ],
)
def test_wrong_options_are_explained(options: tuple[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(FimError, match=message):
        CliRunner().invoke(app, ["estimate", str(write_experiment(tmp_path)), *options], catch_exceptions=False)
