"""`fim champion show` without an experiment file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fim_core.cli.main import app
from fim_core.folders.decision import DecisionFolder
from fim_core.store import Store


def decide(store: Store, experiment: str, candidate: str, *, promote: bool) -> str:
    """A decision of the gate as the pipeline publishes it; returns its version."""
    inputs = {"trained_checkpoint": candidate, "champion": "none"}
    with store.publish("champion_model", experiment=experiment, inputs=inputs, config={}, code="c") as draft:
        rule = {"metric": "loss", "rule": "finite", "holds": promote, "reason": f"The reason for {candidate}."}
        DecisionFolder(draft.path).decision.write_text(
            json.dumps({"promote": promote, "results": [rule], "power": {"enough": True}})
        )
        draft.counts.update(promote=promote, candidate=candidate)
    decided = store.versions("champion_model")[-1]
    if promote:
        store.use(decided, experiment)
    return decided.version


def test_every_experiment_of_the_storage_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIM_STORAGE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store")
    good = decide(store, "orders", "a" * 16, promote=True)
    refused = decide(store, "billing", "b" * 16, promote=False)
    shown = CliRunner().invoke(app, ["champion", "show"])
    assert shown.exit_code == 0, shown.output
    billing, orders = shown.output.index("experiment  billing"), shown.output.index("experiment  orders")
    assert billing < shown.output.index(refused) < orders < shown.output.index(good)
    assert f"The reason for {'a' * 16}." in shown.output
    assert f"The reason for {'b' * 16}." in shown.output


def test_a_storage_without_decisions_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIM_STORAGE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["champion", "show"])
    assert shown.exit_code != 0
    assert "fim champion promote CONFIG" in str(shown.exception)
