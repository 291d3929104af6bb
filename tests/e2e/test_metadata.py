"""Metadata of a finished run: provenance, lineage and plots, and customer text only if allowed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
from tiny_pipeline import TINY, materialize, write_experiment

from fim_assets.metadata import metadata_of
from fim_core.config import load_experiment
from fim_core.demo.export import write_export
from fim_core.pipeline import STAGES, run
from fim_core.store import Store

SHORTEST_TEXT = 24
"""Minimum length of a text that cannot appear elsewhere by chance."""


def shown_of(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """Metadata by asset; tables as a list of dicts."""
    return {
        event.asset_key.path[-1]: {key: plain(value) for key, value in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }


def plain(value: dg.MetadataValue) -> Any:
    if isinstance(value, dg.TableMetadataValue):
        return [dict(record.data) for record in value.records]
    return value.value


@pytest.fixture(scope="module")
def shown(reused: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    return shown_of(reused)


def test_a_checkpoint_leads_back_to_exports_config_and_commit(
    tmp_path: Path, shown: dict[str, dict[str, Any]], finished: Path
) -> None:
    export = tmp_path / "demo.csv"
    write_export(export, **{key: TINY["data"]["sources"][0][key] for key in ("rows", "seed")})
    checkpoint = shown["trained_checkpoint"]
    digest = hashlib.sha256(export.read_bytes()).hexdigest()
    assert checkpoint["exports"] == [{"file": "demo", "rows": 300, "sha256": digest}]

    store = Store(load_experiment(finished).storage)
    lines = {line["name"]: line for line in checkpoint["made_from"]}
    assert list(lines) == [
        "exports",
        "raw_completions",
        "template",
        "fim_prompts",
        "tokenized_dataset",
        "trained_checkpoint",
    ]
    for stage in STAGES[:4]:
        manifest = store.current(stage.asset).manifest
        assert lines[stage.asset]["version"] == manifest["version"]
        assert manifest["config_digest"].startswith(lines[stage.asset]["config"])
        assert (manifest["commit"] or "").startswith(lines[stage.asset]["commit"].partition("-")[0])
    assert f'"{store.current("trained_checkpoint").path}"' in checkpoint["load"]


def test_column_lineage_names_columns_that_exist(shown: dict[str, dict[str, Any]]) -> None:
    columns = {
        asset: [column.name for column in metadata["dagster/column_schema"].columns]
        for asset, metadata in shown.items()
        if "dagster/column_schema" in metadata
    }
    assert set(columns) == {"raw_completions", "fim_prompts", "tokenized_dataset"}
    for asset in ("fim_prompts", "tokenized_dataset"):
        lineage = shown[asset]["dagster/column_lineage"].deps_by_column
        assert list(lineage) == columns[asset]
        for sources in lineage.values():
            assert all(source.column_name in columns[source.asset_key.path[-1]] for source in sources)


PLOTS = [
    ("tokenized_dataset", "prompt_lengths"),
    ("tokenized_dataset", "response_lengths"),
    ("trained_checkpoint", "loss_curve"),
    ("trained_checkpoint", "learning_rate_curve"),
    ("trained_checkpoint", "speed_curve"),
    ("evaluation_report", "intervals"),
    ("evaluation_report", "exact_match_by_version"),
]


def test_pictures_are_short_enough_for_the_ui_to_show_them_in_place(shown: dict[str, dict[str, Any]]) -> None:
    for asset, key in PLOTS:
        assert shown[asset][key].startswith("![plot](<data:image/svg+xml,"), (asset, key)
        assert len(shown[asset][key]) < 1000, (asset, key)


def test_at_most_five_numbers_of_an_asset_are_plotted(
    shown: dict[str, dict[str, Any]], instance: dg.DagsterInstance
) -> None:
    for asset, metadata in shown.items():
        points = [metadata, *observed(instance, asset)]
        plotted = {key for point in points for key, value in point.items() if type(value) in (int, float)}
        assert len(plotted) <= 5, (asset, plotted)


def test_the_report_is_complete_where_it_opens(shown: dict[str, dict[str, Any]]) -> None:
    first = list(shown["evaluation_report"])[:4]
    assert first == ["outcome", "experiment", "report", "gate"]
    report = shown["evaluation_report"]["report"]
    assert shown["evaluation_report"]["gate"] in report
    assert report.count("](<data:image/svg+xml,") == 3
    assert "](<data:image/svg+xml," in shown["champion_model"]["report"]


def observed(instance: dg.DagsterInstance, asset: str) -> list[dict[str, Any]]:
    records = instance.fetch_observations(dg.AssetKey(asset), limit=100).records
    points = [record.asset_observation for record in records]
    return [{key: entry.value for key, entry in point.metadata.items()} for point in points if point]


def test_training_records_observations_while_it_runs(finished: Path, instance: dg.DagsterInstance) -> None:
    metrics = observed(instance, "trained_checkpoint")
    assert {"progress", "loss", "lr", "grad_norm", "tokens_per_second"} <= set().union(*metrics)
    assert any("held_out_loss" in measured for measured in metrics)


def test_evaluation_records_observations_while_it_runs(finished: Path, instance: dg.DagsterInstance) -> None:
    metrics = observed(instance, "evaluation_report")
    rows = TINY["evaluation"]["max_rows"]
    assert any(f"done {rows}, total {rows}, rows_per_second" in measured["progress"] for measured in metrics)


def test_text_of_rows_is_shown_only_if_allowed(
    finished: Path, shown: dict[str, dict[str, Any]], instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    storage = load_experiment(finished).storage
    prompts = pq.read_table(Store(storage).current("fim_prompts").path / "prompts.parquet").to_pylist()
    # Lines without what a representation would escape.
    lines = {line for row in prompts for key in ("prefix", "suffix", "response") for line in row[key].splitlines()}
    lines = {line for line in lines if len(line) >= SHORTEST_TEXT and not set(line) & set("'\"\\")}
    assert len(lines) > 100

    def found_in(shown: object) -> set[str]:
        everything = repr(shown)
        return {line for line in lines if line in everything}

    assert found_in(shown)
    private = materialize(write_experiment(tmp_path, storage=str(storage), metadata={}), instance)
    assert private.success
    assert set(shown_of(private)) == set(shown)
    assert "samples" not in shown_of(private)["tokenized_dataset"]
    messages = [event.message for event in private.all_events]
    checks = [evaluation.metadata for evaluation in private.get_asset_check_evaluations()]
    assert not found_in([shown_of(private), checks, messages])


def test_missing_data_is_left_out(tmp_path: Path) -> None:
    """There are no held-out rows, and the prompts have been garbage-collected since."""
    experiment = load_experiment(write_experiment(tmp_path, data={**TINY["data"], "eval_fraction": 0}))
    results = run(experiment, until="tokenized_dataset")
    shutil.rmtree(results["fim_prompts"].artifact.path)
    shown = metadata_of(results["tokenized_dataset"], experiment)
    assert shown["dagster/row_count"] == results["tokenized_dataset"].artifact.counts["train"]
    assert "samples" not in shown
    assert [record.data["name"] for record in shown["made_from"].records] == ["fim_prompts", "tokenized_dataset"]
    assert list(shown["exports"].records) == []
