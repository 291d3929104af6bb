"""Checks of checkpoints, reports and decisions, on real files that are then damaged."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast, Qwen3Config

from fim_core.quality.check import CheckResult
from fim_core.quality.run import run_checks

PARAMETERS = {"end_ids": [5], "loss_before": 7.0, "loss_after": 2.0}


@pytest.fixture(scope="module")
def saved(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as training leaves it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=False, pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(eos_token_id=[5, 6])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def results(folder: Path, **parameters: object) -> dict[str, CheckResult]:
    given = PARAMETERS | parameters
    facts = {
        "recipe": {"fim_tokens": {"end_ids": given["end_ids"]}},
        "counts": {name: given[name] for name in ("loss_before", "loss_after")},
    }
    found = run_checks("trained_checkpoint", {"checkpoint": folder}, facts, {})
    return {result.name: result for result in found}


def failed(folder: Path, **parameters: object) -> set[str]:
    return {name for name, result in results(folder, **parameters).items() if not result.passed}


def test_a_good_checkpoint_passes(checkpoint: Path) -> None:
    found = results(checkpoint)
    assert {name: result.passed for name, result in found.items()} == dict.fromkeys(
        ("only_safetensors", "finite_weights", "loads", "loss_fell", "has_end_token"), True
    )
    assert found["finite_weights"].total == len(load_file(checkpoint / "model.safetensors"))


def test_checks_write_nothing_to_the_terminal(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results(checkpoint)
    assert capfd.readouterr() == ("", "")


def test_a_pickle_among_the_weights(checkpoint: Path) -> None:
    torch.save({}, checkpoint / "pytorch_model.bin")
    result = results(checkpoint)["only_safetensors"]
    assert (result.passed, result.row_ids) == (False, ["pytorch_model.bin"])


def test_no_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert {"only_safetensors", "loads"} <= failed(checkpoint)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite(checkpoint: Path, value: float) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    result = results(checkpoint)["finite_weights"]
    assert (result.passed, result.row_ids) == (False, ["model.norm.weight"])


def test_a_missing_tensor(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    result = results(checkpoint)["loads"]
    assert (result.passed, result.row_ids) == (False, ["model.norm.weight"])


def test_a_damaged_file_is_a_finding(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"\0" * 100)
    assert {"finite_weights", "loads"} <= failed(checkpoint)


@pytest.mark.parametrize("after", [7.0, 8.0, math.nan, math.inf])
def test_a_loss_that_did_not_fall(checkpoint: Path, after: float) -> None:
    assert failed(checkpoint, loss_after=after) == {"loss_fell"}


def test_no_held_out_rows(checkpoint: Path) -> None:
    result = results(checkpoint, loss_before=None, loss_after=None)["loss_fell"]
    assert (result.passed, result.note) == (True, "Not checked: there are no held-out rows.")


def test_a_model_that_would_not_stop(checkpoint: Path) -> None:
    assert failed(checkpoint, end_ids=[7]) == {"has_end_token"}
    (checkpoint / "generation_config.json").unlink()
    assert failed(checkpoint) == {"has_end_token"}


POWER = {"enough": True, "smallest_gain": {}, "sentence": ""}


def report_results(folder: Path, text: str) -> dict[str, CheckResult]:
    (folder / "report.json").write_text(text)
    results = run_checks("evaluation_report", {"report": folder / "report.json"}, {}, {})
    return {result.name: result for result in results}


def report_result(folder: Path, text: str) -> CheckResult:
    return report_results(folder, text[:-1] + f', "power": {json.dumps(POWER)}}}')["finite_numbers"]


def test_non_finite_numbers_of_a_report_are_found(tmp_path: Path) -> None:
    good = report_result(tmp_path, json.dumps({"loss": 1.5, "by_type": [{"rows": 3, "name": "x", "known": True}]}))
    assert (good.passed, good.total) == (True, 2)
    bad = report_result(tmp_path, '{"loss": NaN, "by_type": [{"share": Infinity, "rows": 3}]}')
    assert (bad.passed, bad.rows, bad.total) == (False, 2, 3)
    assert bad.row_ids == ["by_type[0].share", "loss"]
    assert not report_result(tmp_path, '{"rows": "x"}').passed


def test_a_report_with_too_few_rows_for_a_small_gain_warns(tmp_path: Path) -> None:
    power = {"enough": False, "smallest_gain": {"base": 0.09, "empty": None}, "sentence": "Hold out more rows."}
    warned = report_results(tmp_path, json.dumps({"rows": 1, "power": power}))["enough_rows"]
    assert (warned.passed, warned.severity, warned.note) == (False, "warn", "Hold out more rows.")
    assert warned.breakdown == [
        {"compared with": "base", "smallest gain": "9.0 points"},
        {"compared with": "empty", "smallest gain": "none"},
    ]
    assert report_results(tmp_path, json.dumps({"rows": 1, "power": POWER}))["enough_rows"].passed


def test_failed_rules_of_a_decision_are_listed(tmp_path: Path) -> None:
    rules = [
        {"metric": "loss", "rule": "finite", "holds": True, "reason": "It is."},
        {"metric": "binds", "rule": "not_worse", "holds": False, "reason": "It is worse."},
    ]
    (tmp_path / "decision.json").write_text(json.dumps({"promote": False, "results": rules}))
    (result,) = run_checks("champion_model", {"decision": tmp_path / "decision.json"}, {}, {})
    assert (result.passed, result.rows, result.total, result.note) == (False, 1, 2, "It is worse.")
    assert result.breakdown == rules
