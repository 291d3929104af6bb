"""From an export in a bucket to a champion in a bucket, in Dagster and with the command line."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest
from object_server import SECRET, Bucket
from safetensors.torch import load
from tiny_pipeline import materialize, outcomes, write_experiment
from typer.testing import CliRunner

from fim_core.champion.registry import champion, champion_weights
from fim_core.cli.main import app
from fim_core.config import load_experiment
from fim_core.demo.export import write_export
from fim_core.store import Store

LENIENT = {"rules": [{"metric": "loss", "rule": "better_than_base"}]}
CHECKS = {"loss_fell": {"severity": "warn"}}


@pytest.mark.slow
def test_from_a_bucket_of_exports_to_a_bucket_of_models(
    bucket: Bucket, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_export(tmp_path / "july.csv", rows=200, seed=1)
    bucket.put("exports/july.csv", (tmp_path / "july.csv").read_bytes())
    path = write_experiment(
        tmp_path,
        data={"sources": [f"{bucket.url}/exports"], "max_length": 2048},
        gate=LENIENT,
        max_steps=12,
        evaluation={"max_rows": 20, "max_new_tokens": 4, "bootstrap_samples": 100},
        checks=CHECKS,
        publish=[f"{bucket.url}/models"],
    )
    store = Store(load_experiment(path).storage)
    with dg.DagsterInstance.ephemeral() as instance:
        result = materialize(path, instance)
    assert result.success
    first = champion(store, "tiny")
    assert first is not None
    record = json.loads(bucket.get("models/champion.json"))
    assert record["champion"] == first.version
    published = bucket.get(f"models/{record['folder']}/model.safetensors")
    assert published == (champion_weights(first) / "model.safetensors").read_bytes()
    assert load(published)
    with dg.DagsterInstance.ephemeral() as instance:
        assert set(outcomes(materialize(path, instance)).values()) == {"reused"}

    # A promoted model that is no longer where models are taken from is published by the next run.
    bucket.remove("models/champion.json")
    result = CliRunner().invoke(app, ["champion", "promote", str(path)])
    assert result.exit_code == 0, result.output
    assert json.loads(bucket.get("models/champion.json")) == record
    assert SECRET not in "".join(capfd.readouterr())
