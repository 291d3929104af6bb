"""The gate at the end of the pipeline, with trained models."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tiny_pipeline import TINY, write_experiment
from typer.testing import CliRunner

from fim_core.champion.registry import champion, champion_weights, decisions, roll_back
from fim_core.cli.main import app
from fim_core.config import load_experiment
from fim_core.config.evaluation import GateConfig
from fim_core.errors import FimError
from fim_core.pipeline import run, run_stage, stage_of
from fim_core.store import Artifact, Store

ORDERED_BY = {
    "orders": "placed_at",
    "customers": "last_name",
    "invoices": "due_date",
    "products": "unit_price",
    "shipments": "weight",
    "employees": "hired_on",
    "sessions": "duration",
    "payments": "amount",
}
"""The ORDER BY column of each table: all that there is to learn."""

STEPS = 300
LOSES = "Failed: the loss is larger than chance"
LENIENT = {"rules": [{"metric": "loss", "rule": "finite"}]}


def write_rows(path: Path, *, shuffled: bool = False) -> None:
    """Statements to complete with ORDER BY: in seven of ten it is missing; in the others it is present, and nothing is to add."""
    draw = Random(5)
    rows = []
    for number in range(700):
        table = draw.choice(list(ORDERED_BY))
        column, is_there = ORDERED_BY[table], draw.random() < 0.3
        before = f"SELECT * FROM {table} WHERE id > {number} ORDER BY {column if is_there else ''}"
        items = [{"type": "text", "text": text} for text in ("{}", before + "<fillMe> LIMIT 5;")]
        rows.append(["order", f"w{number // 4}", json.dumps(items), "" if is_there else column])
    if shuffled:
        outputs = [row[3] for row in rows]
        draw.shuffle(outputs)
        rows = [[*row[:3], output] for row, output in zip(rows, outputs, strict=True)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["TYPE", "WORKSHEET_ID", "INPUT", "OUTPUT"])
        writer.writerows(rows)


def write(folder: Path, export: Path, **changes: Any) -> Path:
    """An experiment that learns these rows in a few seconds."""
    sections = {
        "data": {
            "sources": [{"name_or_path": str(export)}],
            "template": "plain",
            "eval_fraction": 0.25,
            "max_length": 512,
        },
        "model": {**TINY["model"], "tokenizer": {"vocab_size": 512}},
        "max_steps": STEPS,
        "epochs": STEPS,
        "evaluation": {"max_rows": 120, "max_new_tokens": 8, "bootstrap_samples": 200},
        # Else this check would stop most of the bad models before the gate.
        "checks": {"loss_fell": {"severity": "warn"}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    return write_experiment(folder, **{**sections, "storage": str(folder.parent / "store"), **changes})


def fim(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def reasons(decided: Artifact, *, holds: bool) -> Sequence[str]:
    results = json.loads((decided.path / "decision.json").read_text(encoding="utf-8"))["results"]
    return [result["reason"] for result in results if result["holds"] is holds]


def value(path: Path, metric: str, predictor: str | None = None) -> float:
    report = Store(load_experiment(path).storage).current("evaluation_report", "tiny").counts
    return report["others"][predictor][metric] if predictor else report["metrics"][metric]["value"]


def assert_card_has_metrics(champion: Artifact, checkpoint: Artifact, exact_match: float) -> None:
    """The champion has a separate model card, in a folder named after the experiment; the checkpoint's card is unchanged."""
    weights = champion_weights(champion)
    assert weights.name == "tiny"
    assert (weights / "model.safetensors").samefile(checkpoint.path / "model.safetensors")
    results = {result.metric_type: result for result in ModelCard.load(weights / "README.md").data.eval_results}
    assert results["exact_match"].metric_value == pytest.approx(exact_match, abs=1e-4)
    card = (checkpoint.path / "README.md").read_text()
    assert "## Evaluation" not in card
    assert "| rows | 700 |" in card
    assert ModelCard(card).data.eval_results is None
    for folder in (weights, checkpoint.path):
        assert str(champion.path.parents[1]) not in (folder / "README.md").read_text()


def test_a_champion_survives_a_worse_candidate_and_a_rollback_stays(tmp_path: Path) -> None:
    write_rows(tmp_path / "export.csv")
    good = write(tmp_path / "good", tmp_path / "export.csv")
    store = Store(load_experiment(good).storage)
    exit_code, said = fim("champion", "promote", good)
    assert exit_code == 0, said
    first = champion(store, "tiny")
    assert first is not None
    assert str(champion_weights(first)) in said
    assert value(good, "exact_match_sql") > value(good, "exact_match_sql", "most_frequent") + 0.2, "it has learnt"
    assert_card_has_metrics(first, store.current("trained_checkpoint"), value(good, "exact_match"))

    worse = write(tmp_path / "worse", tmp_path / "export.csv", max_steps=1)
    exit_code, said = fim("champion", "promote", worse)
    assert exit_code == 1
    assert f"refused: checkpoint {store.current('trained_checkpoint').version}; champion {first.version} stays" in said
    decided = run(load_experiment(worse))["champion_model"]
    assert any("champion" in reason and LOSES in reason for reason in reasons(decided.artifact, holds=False))
    assert [check.name for check in decided.checks if not check.passed] == ["gate"]
    assert champion(store, "tiny") == first
    shown = fim("champion", "show", worse)[1].splitlines()
    assert shown[0].endswith(str(champion_weights(first)))
    [refused] = [number for number, line in enumerate(shown) if line.startswith("refused ")]
    assert decided.artifact.version in shown[refused]
    assert any(line.startswith("- ") and LOSES in line for line in shown[refused:])
    assert not any(line.startswith("- ") for line in shown[:refused]), "why the champion is one"

    careless = write(tmp_path / "careless", tmp_path / "export.csv", max_steps=1, gate=LENIENT)
    assert fim("champion", "promote", careless)[0] == 0
    second = champion(store, "tiny")
    assert second is not None
    assert second != first
    exit_code, said = fim("champion", "rollback", careless)
    assert exit_code == 0
    assert first.version in said
    assert champion(store, "tiny") == first
    assert f"rolled back {second.version}" in fim("champion", "show", careless)[1]

    again = run(load_experiment(careless))["champion_model"].artifact
    assert champion(store, "tiny") == first, "the next run must not undo what someone did on purpose"
    assert "rolled back manually" in reasons(again, holds=False)[0]
    assert roll_back(store, "tiny", second.version) == second
    assert run(load_experiment(careless))["champion_model"].artifact == second == champion(store, "tiny")
    assert f"rolled back {first.version}" in fim("champion", "show", careless)[1], "whoever goes on takes it back"
    with pytest.raises(FimError, match=f"Known: {first.version}"):
        roll_back(store, "tiny", "nowhere")


@pytest.mark.slow
def test_a_model_trained_on_shuffled_responses_is_refused(tmp_path: Path) -> None:
    """Both as first candidate and against a champion, although it is evaluated on its own shuffled rows."""
    write_rows(tmp_path / "shuffled.csv", shuffled=True)
    shuffled = write(tmp_path / "shuffled", tmp_path / "shuffled.csv")
    store = Store(load_experiment(shuffled).storage)
    exit_code, said = fim("champion", "promote", shuffled)
    assert exit_code == 1
    assert champion(store, "tiny") is None
    # It has learnt how completions look, which its random base does not know.
    found = {(rule, metric): holds for rule, metric, holds in rules(store)}
    assert found["better_than_base", "loss_text"] is True
    assert found["better_than_constants", "exact_match_sql"] is False

    write_rows(tmp_path / "export.csv")
    assert fim("champion", "promote", write(tmp_path / "good", tmp_path / "export.csv"))[0] == 0
    reigning = champion(store, "tiny")
    exit_code, said = fim("champion", "promote", shuffled)
    assert exit_code == 1
    assert "Failed" in said
    assert champion(store, "tiny") == reigning is not None


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, `export.csv`, and a model that is good at them, `pretrained`."""
    folder = tmp_path_factory.mktemp("tuned")
    write_rows(folder / "export.csv")
    good = load_experiment(write(folder / "good", folder / "export.csv", storage=str(folder / "first")))
    checkpoint = run(good, until="trained_checkpoint")["trained_checkpoint"].artifact.path
    shutil.copytree(checkpoint, folder / "pretrained")
    return folder


def fine_tuning(tuned: Path, name: str, *, export: str = "export.csv", lora: bool = False, **changes: Any) -> Path:
    """An experiment that fine-tunes the good model."""
    model = {"name_or_path": str(tuned / "pretrained")} | ({"peft_config": {"r": 4}} if lora else {})
    return write(tuned / name, tuned / export, model=model, **changes)


def rules(store: Store) -> list[tuple[str, str, bool | None]]:
    """Rule, metric and outcome of the last decision."""
    [*_, last] = decisions(store, "tiny")
    results = json.loads((last.path / "decision.json").read_text(encoding="utf-8"))["results"]
    return [(result["rule"], result["metric"], result["holds"]) for result in results]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("wrecked", {"optimizer": {"lr": 3.0}, "max_steps": 20}, LOSES),
        ("untrained", {"lora": True, "optimizer": {"lr": 1e-12}, "max_steps": 1}, "there is no difference"),
        ("shuffled", {"export": "shuffled.csv"}, None),
    ],
)
def test_a_fine_tune_that_does_not_improve_a_good_base_is_refused(
    tuned: Path, name: str, changes: dict[str, Any], why: str | None
) -> None:
    write_rows(tuned / "shuffled.csv", shuffled=True)
    path = fine_tuning(tuned, name, **changes)
    exit_code, said = fim("champion", "promote", path)
    assert exit_code == 1, said
    store = Store(load_experiment(path).storage)
    assert champion(store, "tiny") is None
    report = json.loads((store.current("evaluation_report").path / "report.json").read_text(encoding="utf-8"))
    if why is None:
        # On shuffled held-out rows the good base is no better than chance, so a gain over it means nothing.
        assert ("better_than_constants", "exact_match_sql", False) in rules(store)
        return
    of_base = [holds for rule, _, holds in rules(store) if rule == "better_than_base"]
    assert False in of_base
    assert True not in of_base
    assert report["others"]["base"]["metrics"]["exact_match_sql"]["value"] > 0.6, "the base is good"
    assert any("base model" in line and why in line for line in said.splitlines() if line.startswith("- ")), said


@pytest.mark.slow
def test_the_base_is_scored_once_for_all_trainings_and_only_with_its_own_weights(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fim_core.evaluation import base_model

    loaded, load = [], base_model.load_base
    monkeypatch.setattr(
        base_model, "load_base", lambda *given, **options: loaded.append(given) or load(*given, **options)
    )
    place = tmp_path / "pretrained"
    shutil.copytree(tuned / "pretrained", place)

    def train(lr: float) -> dict[str, Any]:
        path = write(
            tmp_path / str(lr), tuned / "export.csv", model={"name_or_path": str(place)}, max_steps=1,
            optimizer={"lr": lr}, storage=str(tmp_path / "store"),
        )  # fmt: skip
        report = run(load_experiment(path), until="evaluation_report")["evaluation_report"].artifact.path
        return json.loads((report / "report.json").read_text(encoding="utf-8"))

    first = train(1e-3)
    assert len(loaded) == 1
    second = train(2e-3)
    assert len(loaded) == 1, "another learning rate, the same base"
    assert second["others"]["base"]["metrics"] == first["others"]["base"]["metrics"]
    assert second["metrics"]["loss"] != first["metrics"]["loss"]

    weights = load_file(place / "model.safetensors")
    save_file({name: tensor * 0.5 for name, tensor in weights.items()}, place / "model.safetensors", {"format": "pt"})
    third = train(2e-3)
    assert len(loaded) == 2, "other weights"
    assert third["others"]["base"]["metrics"]["loss"] != second["others"]["base"]["metrics"]["loss"]


@pytest.mark.slow
def test_a_base_that_is_gone_or_changed_is_reported_and_comes_back(tuned: Path, tmp_path: Path) -> None:
    """Only the report is made again, as in Dagster. Training does not run, so only the report needs the base."""
    place = tmp_path / "pretrained"
    shutil.copytree(tuned / "pretrained", place)
    sections = {"max_steps": 1, "storage": str(tmp_path / "store"), "model": {"name_or_path": str(place)}}
    path = write(tmp_path / "first", tuned / "export.csv", **sections)
    run(load_experiment(path), until="trained_checkpoint")
    experiment = load_experiment(path)
    store = Store(experiment.storage)

    def report(**options: Any) -> dict[str, Any]:
        made = run_stage(stage_of("evaluation_report"), experiment, store, upstream_of=stage_of, **options)
        return json.loads((made.artifact.path / "report.json").read_text(encoding="utf-8"))

    place.rename(tmp_path / "elsewhere")
    assert "There is no model folder" in report()["unavailable"]["base"]
    decided = run_stage(stage_of("champion_model"), experiment, store, upstream_of=stage_of).artifact
    assert any("There is no model folder" in reason for reason in reasons(decided, holds=False))
    (tmp_path / "elsewhere").rename(place)
    weights = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert "have changed since" in report()["unavailable"]["base"]
    (place / "model.safetensors").write_bytes(weights)
    whole = report(force=True)
    assert whole["unavailable"] == {}
    assert "base" in whole["others"]


def test_a_rule_that_cannot_be_evaluated_promotes_no_candidate(tmp_path: Path) -> None:
    """Rows that the metric of the only rule does not apply to."""
    from fim_core.champion.gate import decide

    other = {"metrics": {}, "differences": {}, "rows": 4}
    report = {
        "metrics": {},
        "others": {"champion": other},
        "unavailable": {},
        "power": {},
        "options": {"confidence": 0.95},
        "counts": {"evaluated": 4},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    gate = GateConfig.model_validate({"rules": [{"metric": "binds", "rule": "not_worse"}]})
    decided = decide(tmp_path, gate, has_champion=True)
    assert not decided.promote
    assert decided.results[-1].holds is False
