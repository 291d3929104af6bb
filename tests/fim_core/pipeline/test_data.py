"""What the versions of prepared data follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fim_core.config import Experiment
from fim_core.pipeline import data
from fim_core.store import Store


def outside(folder: Path, **model: Any) -> dict[str, str]:
    """Content hashes of what prompts are made of beside artifacts."""
    content = {"model": model, "data": {"sources": [{"type": "demo"}]}}
    return data.fim_prompts.outside(Experiment.model_validate(content), Store(folder), {})


def test_prompts_follow_the_models_generation_config_beside_another_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = tmp_path / "model", tmp_path / "tokenizer"
    for folder in (model, tokenizer):
        folder.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    (model / "generation_config.json").write_text('{"eos_token_id": 1}')
    places = {"name_or_path": str(model), "tokenizer": str(tokenizer)}
    before = outside(tmp_path, **places)
    (model / "config.json").write_text("{}")
    assert outside(tmp_path, **places) == before
    (model / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert outside(tmp_path, **places) != before
    (tokenizer / "tokenizer.json").write_text("[]")
    assert outside(tmp_path, **places)["tokenizer"] != before["tokenizer"]


def test_prompts_follow_what_decides_the_end_token(tmp_path: Path) -> None:
    def options(template: str = "chat", **model: Any) -> dict[str, Any]:
        content = {
            "model": {"config": {"model_type": "qwen3"}, "tokenizer": str(tmp_path), **model},
            "data": {"sources": [{"type": "demo"}], "template": template},
        }
        return data.fim_prompts.options(Experiment.model_validate(content))

    assert options() == options()
    assert options() != options(template="plain")
    assert options() != options(end_token="<|file_sep|>")
    (tmp_path / "tokenizer.json").write_text("{}")
    config = {"model_type": "qwen3"}
    before = outside(tmp_path, config=config, tokenizer=str(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert outside(tmp_path, config=config, tokenizer=str(tmp_path)) != before


def test_prompts_do_not_follow_weights_of_another_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    config = {"model_type": "qwen3"}
    assert set(outside(tmp_path, config=config, tokenizer=str(tmp_path))) == {"template", "tokenizer"}
    assert set(outside(tmp_path, name_or_path=str(tmp_path))) == {"template", "tokenizer"}
