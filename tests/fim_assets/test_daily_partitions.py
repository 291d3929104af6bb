"""Exports by day: partitions, backfills, and what a new day costs, with Dagster and without."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest
import yaml
from daily_exports import write_daily_experiment, write_day
from object_server import Bucket
from transformers import PreTrainedTokenizerFast

from fim_assets.component import definitions_of
from fim_assets.instance import PipelineInstance
from fim_assets.materialize import selection
from fim_core.config import load_experiment
from fim_core.errors import FimError
from fim_core.folders.prompts import PromptsFolder
from fim_core.pipeline import run
from fim_core.store import Artifact, Store

DAYS = {"2026-03-01": 100, "2026-03-02": 130, "2026-03-03": 110, "2026-03-05": 120, "2026-03-06": 140}
"""Rows of each day; one day has no export."""
NEXT_DAY, NEXT_ROWS = "2026-03-07", 150


def run_job(path: Path, job: str, dagster: dg.DagsterInstance, day: str | None = None) -> dg.ExecuteInProcessResult:
    definition = definitions_of(PipelineInstance(str(path))).resolve_job_def(job)
    return definition.execute_in_process(instance=dagster, partition_key=day, raise_on_error=False)


def prompts(store: Store, experiment: str = "tiny") -> Artifact:
    return store.current("fim_prompts", experiment)


def rendered(store: Store, day: str) -> tuple[int, int]:
    """Rows of the prompts of a day, and how many of them were rendered for it."""
    counts = prompts(store, f"tiny.{day}").counts
    return counts["rows_in"], counts["rendered"]


def table_of(artifact: Artifact) -> list[dict]:
    return pq.read_table(PromptsFolder(artifact.path).rows).to_pylist()


@pytest.mark.slow
def test_a_backfill_and_a_new_day_render_exactly_their_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_daily_experiment(tmp_path, tokenizer)
    store = Store(tmp_path / "store")
    for day, rows in DAYS.items():
        write_day(tmp_path, day, rows)
    dagster = dg.DagsterInstance.ephemeral()
    for day, rows in DAYS.items():
        assert run_job(path, "prepare_day", dagster, day).success
        assert rendered(store, day) == (rows, rows)
    assert run_job(path, "prepare_data", dagster).success
    assert (prompts(store).counts["rows_in"], prompts(store).counts["rendered"]) == (sum(DAYS.values()), 0)

    write_day(tmp_path, NEXT_DAY, NEXT_ROWS)
    assert run_job(path, "prepare_day", dagster, NEXT_DAY).success
    assert rendered(store, NEXT_DAY) == (NEXT_ROWS, NEXT_ROWS)
    before = {row["row_id"]: row["split"] for row in table_of(prompts(store))}
    assert run_job(path, "prepare_data", dagster).success
    assert (prompts(store).counts["rows_in"], prompts(store).counts["rendered"]) == (sum(DAYS.values()) + NEXT_ROWS, 0)
    tokens = store.current("tokenized_dataset", "tiny").counts
    assert tokens["encoded"] == prompts(store, f"tiny.{NEXT_DAY}").counts["rows_kept"]
    # The split is drawn over all days, and held-out rows stay held out.
    after = {row["row_id"]: row["split"] for row in table_of(prompts(store))}
    held_out = {row_id for row_id, split in before.items() if split == "eval"}
    assert held_out
    assert all(after[row_id] == "eval" for row_id in held_out)

    done = dagster.get_materialized_partitions(dg.AssetKey("fim_prompts"))
    assert done == {*DAYS, NEXT_DAY}


def test_the_command_line_makes_the_same_and_renders_only_the_new_day(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = write_daily_experiment(tmp_path, tokenizer)
    for day, rows in DAYS.items():
        write_day(tmp_path, day, rows)
    experiment = load_experiment(path)
    first = run(experiment, until="tokenized_dataset")
    assert first["fim_prompts"].artifact.counts["rendered"] == sum(DAYS.values())
    write_day(tmp_path, NEXT_DAY, NEXT_ROWS)
    second = run(experiment, until="tokenized_dataset")
    assert second["fim_prompts"].artifact.counts["rendered"] == NEXT_ROWS
    day = run(experiment.of_day(date.fromisoformat(NEXT_DAY)), until="fim_prompts")["fim_prompts"].artifact
    assert (day.counts["rows_in"], day.counts["rendered"]) == (NEXT_ROWS, 0)
    assert prompts(Store(experiment.storage)) == second["fim_prompts"].artifact

    # The reference: the same files by a glob, in a store of their own.
    content = yaml.safe_load(path.read_text())
    content["data"]["sources"] = [f"{tmp_path}/exports/*/*.csv"]
    content["storage"] = str(tmp_path / "reference")
    path.write_text(yaml.safe_dump(content))
    reference = run(load_experiment(path), until="fim_prompts")["fim_prompts"].artifact
    assert table_of(second["fim_prompts"].artifact) == table_of(reference)


def test_training_reads_the_window(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for day, rows in DAYS.items():
        write_day(tmp_path, day, rows)
    experiment = load_experiment(write_daily_experiment(tmp_path, tokenizer, window=3))
    counts = run(experiment, until="fim_prompts")["raw_completions"].artifact.counts
    assert counts["rows"] == DAYS["2026-03-05"] + DAYS["2026-03-06"]


def test_a_day_without_an_export_fails_with_the_reason(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_day(tmp_path, "2026-03-01", 100)
    result = run_job(
        write_daily_experiment(tmp_path, tokenizer), "prepare_day", dg.DagsterInstance.ephemeral(), "2026-03-04"
    )
    assert not result.success
    failure = result.failure_data_for_node("raw_completions")
    assert "There is no export of 2026-03-04" in failure.user_failure_data.description


def test_partitions_begin_with_the_first_export_and_end_today(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    for day in ("2026-03-03", "2026-03-01"):
        write_day(tmp_path, day, 100)
    path = write_daily_experiment(tmp_path, tokenizer)
    graph = definitions_of(PipelineInstance(str(path))).resolve_asset_graph()
    for asset in ("raw_completions", "fim_prompts"):
        keys = graph.get(dg.AssetKey(asset)).partitions_def.get_partition_keys()
        assert keys[0] == "2026-03-01"
        assert date.today().isoformat() in keys[-2:]
    assert graph.get(dg.AssetKey("tokenized_dataset")).partitions_def is None


@pytest.mark.slow
def test_days_in_a_bucket(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, bucket: Bucket) -> None:
    for day in ("2026-03-01", "2026-03-03"):
        write_day(tmp_path, day, DAYS["2026-03-01"])
        bucket.put(f"exports/{day}/rows.csv", (tmp_path / "exports" / day / "rows.csv").read_bytes())
    path = write_daily_experiment(tmp_path, tokenizer)
    path.write_text(path.read_text().replace(f"{tmp_path}/exports", f"{bucket.url}/exports"))
    dagster = dg.DagsterInstance.ephemeral()
    for day in ("2026-03-01", "2026-03-03"):
        assert run_job(path, "prepare_day", dagster, day).success
        assert rendered(Store(tmp_path / "store"), day) == (100, 100)
    assert not run_job(path, "prepare_day", dagster, "2026-03-02").success
    in_bucket = run(load_experiment(path), until="fim_prompts")["fim_prompts"].artifact
    # The reference: the same exports in a folder have the same version.
    path.write_text(path.read_text().replace(f"{bucket.url}/exports", f"{tmp_path}/exports"))
    assert run(load_experiment(path), until="fim_prompts")["fim_prompts"].artifact == in_bucket


def test_a_bucket_that_cannot_be_listed_does_not_break_the_code_location(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_daily_experiment(tmp_path, tokenizer)
    path.write_text(path.read_text().replace(f"{tmp_path}/exports", "s3://no-such-bucket/exports"))
    graph = definitions_of(PipelineInstance(str(path))).resolve_asset_graph()
    [today] = graph.get(dg.AssetKey("raw_completions")).partitions_def.get_partition_keys()
    assert today == datetime.now(UTC).date().isoformat()
    assert "There is no bucket or object s3://no-such-bucket" in caplog.text


def test_make_demo_leaves_out_the_assets_with_partitions(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_day(tmp_path, "2026-03-01", 100)
    monkeypatch.setenv("FIM_EXPERIMENT", str(write_daily_experiment(tmp_path, tokenizer)))
    assert selection() == "tokenized_dataset,trained_checkpoint,evaluation_report,champion_model"
    monkeypatch.setenv("FIM_EXPERIMENT", str(tmp_path / "missing.yaml"))
    assert selection() == "*"


def test_a_tokenizer_that_is_trained_on_the_rows_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write_daily_experiment(tmp_path, tokenizer)
    content = yaml.safe_load(path.read_text())
    content["model"]["tokenizer"] = {"vocab_size": 700}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(FimError, match="trained again on the rows of every day"):
        load_experiment(path)
