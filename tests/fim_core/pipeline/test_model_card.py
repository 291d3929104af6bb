"""Model cards: front matter for hubs, and no paths of this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from small_tokenizers import like_model

from fim_core.config import DataConfig, Experiment, ModelConfig, Source
from fim_core.pipeline.accounting import RowAccount
from fim_core.pipeline.model_card import base_model, model_card, with_metrics
from fim_core.prompts import PromptBuilder
from fim_core.training.job import TrainResult

RESULT = TrainResult(
    Path("/secret/model"), 50, 2, 2.5, 1.25, 1.0, 32, 1600, 60, 9000, 3000, 5000, 0, 3.0, 1, None, "tree", 9
)
ROWS = RowAccount.of(
    {"rows_in": 1000, "rejected": {"invalid_json": 7, "control_token": 3}},
    {"too_long": 2, "control_token": 1, "train": 800, "eval": 179, "left_out": 8},
)
RECIPE = PromptBuilder(
    like_model("qwen", chat=False),
    ModelConfig(config={"model_type": "qwen3"}, tokenizer="x"),
    DataConfig(sources=[Source(type="demo")], template="plain"),
).recipe


def card_of(model: dict[str, Any], **data: Any) -> str:
    content = {
        "name": "own-sql",
        "model": model,
        "data": {"sources": [{"type": "demo"}], "template": "plain", **data},
        "optimizer": {"lr": 2e-4},
    }
    return model_card(
        Experiment.model_validate(content), RESULT, RECIPE, rows=ROWS, provenance={"fim_prompts": "abc123"}
    )


def front_of(card: str, folder: Path) -> dict[str, Any]:
    (folder / "README.md").write_text(card)
    return dict(metadata_load(folder / "README.md") or {})


def base_folder(folder: Path, config: dict[str, Any], card: str = "") -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if card:
        (folder / "README.md").write_text(card)
    return str(folder)


CARD_OF_BASE = "---\nlicense: apache-2.0\nlicense_link: https://example.org/LICENSE\nbase_model: Org/root\n---\n# x\n"


@pytest.mark.parametrize(
    ("place", "config", "card", "hub_id", "license"),
    [
        ("m", {"_name_or_path": "Org/model-0.5B"}, CARD_OF_BASE, "Org/model-0.5B", "apache-2.0"),
        ("m", {"_name_or_path": "/data/models/x"}, CARD_OF_BASE, "Org/root", "apache-2.0"),
        ("m", {"_name_or_path": "/data/models/x"}, "", None, None),
        ("m", {"_name_or_path": "A name"}, "---\nbase_model: [Org/a, Org/b]\nlicense: [mit]\n---\n", None, None),
        ("m", {}, "# No front matter\n", None, None),
        ("m", {}, "---\n: [broken\n---\n", None, None),
        ("models--Org--model/snapshots/0a1b", {"_name_or_path": "Org/older"}, CARD_OF_BASE, "Org/model", "apache-2.0"),
    ],
)
def test_the_base_model_of_a_folder(
    tmp_path: Path, place: str, config: dict[str, Any], card: str, hub_id: str | None, license: str | None
) -> None:
    folder = base_folder(tmp_path / place, config, card)
    base = base_model(folder)
    assert (base.hub_id, base.license.get("license")) == (hub_id, license)
    assert base.name == (hub_id or Path(folder).name)
    written = card_of({"name_or_path": folder})
    front = front_of(written, tmp_path)
    assert (front.get("base_model"), front.get("license")) == (hub_id, license)
    assert f"Fine-tuned from {base.name}." in written
    assert str(tmp_path) not in written


def test_a_base_on_the_hub() -> None:
    assert base_model("Org/model").hub_id == "Org/model"


def test_a_card_has_front_matter_and_tables(tmp_path: Path) -> None:
    card = card_of({"config": {"model_type": "qwen3"}, "tokenizer": str(tmp_path)})
    front = front_of(card, tmp_path)
    assert front == {
        "language": "code",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["fill-in-the-middle", "sql"],
    }
    assert "Trained from scratch." in card
    assert "| rows | 1,000 |\n| kept | 979 |\n| rejected | 13 (invalid_json 7, control_token 4, too_long 2) |" in card
    assert "| in neither split | 8 |\n| for training | 800 |\n| held out | 179 |" in card
    assert "| optimizer steps | 50 |\n| rows per step | 32 |" in card
    assert "| learning rate, peak | 0.0002 |" in card
    assert "| schedule | cosine, 9 steps of warm-up |" in card
    assert "| gradient clipping (norm) | 1.0 |" in card
    assert "| held-out loss before, after (nats) | 2.5000, 1.2500 |" in card
    assert "<|fim_prefix|>{text before the cursor}<|fim_suffix|>{text after it}<|fim_middle|>" in card
    assert "then `<|endoftext|>`" in card
    assert "Template `plain`" in card
    assert "abc123" in card
    assert not re.search(r"/(secret|tmp|home|work)/", card)
    assert str(tmp_path) not in card


def test_only_data_sets_of_the_hub_are_named(tmp_path: Path) -> None:
    sources = [
        {"type": "huggingface_instruct", "name_or_path": "Org/chats"},
        {"type": "huggingface_instruct", "name_or_path": str(tmp_path)},
        {"type": "fim_completions", "name_or_path": "exports/rows.csv"},
    ]
    card = card_of({"config": {"model_type": "qwen3"}, "tokenizer": "t"}, sources=sources)
    assert front_of(card, tmp_path)["datasets"] == ["Org/chats"]


def test_metrics_go_into_the_front_matter_and_a_table(tmp_path: Path) -> None:
    figure = {"value": 0.246, "low": 0.19, "high": 0.3, "n": 240}
    report = {
        "experiment": "own-sql",
        "options": {"confidence": 0.95},
        "counts": {"evaluated": 240, "groups": 31},
        "others": {"base": {"metrics": {"exact_match": figure | {"value": 0.008}}}},
        "metrics": {"exact_match": figure, "loss": {"value": None, "low": None, "high": None, "n": 240}},
        "definitions": {
            "exact_match": {"title": "Exact match", "unit": "share"},
            "loss": {"title": "Held-out loss", "unit": "nats/token"},
        },
    }
    plain = card_of({"config": {"model_type": "qwen3"}, "tokenizer": "t"})
    card = with_metrics(plain, report)
    content = ModelCard(card)
    assert content.data.model_name == "own-sql"
    [result] = content.data.eval_results
    assert (result.metric_type, result.metric_value, result.task_type) == ("exact_match", 0.246, "text-generation")
    assert result.metric_name == "Exact match (95% interval 0.1900 to 0.3000)"
    assert "| Exact match | share | 0.2460 | 0.1900 to 0.3000 | 0.0080 | 240 |" in card
    assert "240 held-out rows in 31 groups" in card
    front = front_of(card, tmp_path)
    assert {name: front[name] for name in front_of(plain, tmp_path)} == front_of(plain, tmp_path)
    assert ModelCard(plain).text.strip() in card
