"""The fine-tuning benchmark on a tiny, untrained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import finetune
from benchmarks.finetune_cases import CASES, NATIVE, experiment_of
from fim_core.config.model import ModelConfig
from fim_core.demo.export import write_export
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.modeling.load import build_model
from fim_core.modeling.save import save_model

BASE = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def result(**changes: Any) -> dict[str, Any]:
    figures = {metric: {"value": 0.25} for metric in finetune.METRICS}
    difference = {"value": 0.1, "low": -0.05, "high": 0.2}
    made = {
        "promote": False,
        "reasons": ["Exact match: no gain. Failed."],
        "figures": dict.fromkeys(("model", *finetune.OTHERS), figures),
        "differences": dict.fromkeys(finetune.OTHERS, difference),
        "steps": 13,
        "seconds": 61.2,
    }
    return made | changes


def options_of(experiment: dict[str, Any], path: str = "") -> dict[str, Any]:
    """The options of an experiment by dotted key."""
    found: dict[str, Any] = {}
    for key, value in experiment.items():
        found |= options_of(value, f"{path}{key}.") if isinstance(value, dict) and value else {path + key: value}
    return found


@pytest.mark.parametrize("name", list(CASES))
def test_a_case_changes_what_it_says_and_nothing_else(tmp_path: Path, name: str) -> None:
    def experiment(case: str) -> dict[str, Any]:
        places = {place: tmp_path / place for place in ("train", "held_out", "template", "storage")}
        made = experiment_of(case, model="m", end_of_turn="<|im_end|>", **places)
        return options_of(made.model_dump(mode="json"))

    first, other = experiment("lora"), experiment(name)
    differing = {key for key in first.keys() | other.keys() if first.get(key, ...) != other.get(key, ...)}
    changes = CASES[name].changes
    # Without adapters the default of the rate is another.
    expected = {key for key in differing if any(key == named or key.startswith(f"{named}.") for named in changes)}
    assert differing - expected <= {"name"} | ({"optimizer.lr"} if "model.peft_config" in changes else set())
    assert bool(expected) == bool(changes)


def test_table_of_results() -> None:
    stopped = result(figures={}, differences={}, steps=None, reasons=["The loss is not finite."])
    lines = list(finetune.table({"lora": result(), "shuffled": result(promote=True), "wrecked": stopped}))
    width = lines[0].count("|")
    assert [line.count("|") for line in lines] == [width] * len(lines)
    assert [line.split(" | ")[0].lstrip("| ") for line in lines[2:]] == [
        "empty completion",
        "most frequent completion",
        "base (prompts of lora)",
        "lora",
        "shuffled",
        "wrecked",
    ]
    assert "+10.0 (-5.0 to +20.0)" in lines[5]
    said = list(finetune.verdicts({"lora": result(), "shuffled": result(promote=True), "wrecked": stopped}))
    assert said[-1] == "The gate promoted what it should have refused: shuffled."


@pytest.mark.slow
def test_whole_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two cases give a table; a second run computes nothing, and a longer list of cases only the missing ones."""
    tokenizer = train_tokenizer(["select a, b from t where x = 1\n"] * 9, 700)
    network = build_model(ModelConfig(config=BASE, tokenizer="unused"), tokenizer, seed=0)
    save_model(network, tokenizer, [tokenizer.eos_token_id], tmp_path / "model")
    write_export(tmp_path / "export.csv", rows=300, seed=1)
    arguments = ["finetune", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "export.csv")]
    arguments += ["--train-rows", "40", "--eval-rows", "12", "--storage", str(tmp_path / "kept"), "--cases"]

    def run(*cases: str) -> tuple[str, list[dict[str, Any]]]:
        monkeypatch.setattr("sys.argv", [*arguments, *cases])
        finetune.main()
        lines = (tmp_path / "kept" / "results.jsonl").read_text().splitlines()
        return capsys.readouterr().out, [json.loads(line) for line in lines]

    table, results = run("untrained", "shuffled")
    assert [found["case"] for found in results] == ["untrained", "shuffled"]
    assert not any(found["promote"] for found in results)
    assert "| untrained |" in table
    assert "should have refused" not in table
    assert results[0]["differences"]["base"]["value"] == 0, "it is the base"
    assert run("untrained", "shuffled")[1] == results
    assert run("shuffled", "rows-half")[1][:2] == results
    assert (tmp_path / "kept" / "native.tmpl").read_text() == NATIVE


def test_a_model_and_rows_are_needed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["finetune", "--model", "", "--data", ""])
    with pytest.raises(SystemExit):
        finetune.main()
    assert "ships neither" in capsys.readouterr().err
