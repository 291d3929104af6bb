"""The recipe of prompts: storage in folders and Parquet files, and conflicts with an experiment."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_path import MODEL, data_options
from small_tokenizers import CL100K, byte_level
from transformers import PreTrainedTokenizerFast

from fim_core.config.model import FimTokenNames
from fim_core.errors import FimError
from fim_core.prompt_format.recipe import Recipe, find_recipe, read_recipe, recipe_of, schema_with, write_recipe
from fim_core.prompts import PromptBuilder
from fim_core.records.schema import Completion

FIM = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


@pytest.fixture
def recipe(tokenizer: PreTrainedTokenizerFast) -> Recipe:
    return PromptBuilder(copy.deepcopy(tokenizer), MODEL, data_options()).recipe


def test_round_trip(recipe: Recipe, tmp_path: Path) -> None:
    write_recipe(tmp_path, recipe)
    assert find_recipe(tmp_path) == read_recipe(tmp_path) == recipe
    schema = schema_with(pa.schema([("a", pa.string())], metadata={"kept": "too"}), recipe)
    pq.write_table(pa.table({"a": ["x"]}, schema=schema), tmp_path / "a")
    assert recipe_of(pq.read_schema(tmp_path / "a"), "a") == recipe
    assert pq.read_schema(tmp_path / "a").metadata[b"kept"] == b"too"
    assert recipe_of(pa.schema([]), "a") is None


def test_a_missing_and_a_damaged_recipe(tmp_path: Path) -> None:
    assert find_recipe(tmp_path) is None
    with pytest.raises(FimError, match=r"no fim\.json"):
        read_recipe(tmp_path)
    (tmp_path / "fim.json").write_text('{"version": 2}')
    with pytest.raises(FimError, match=r"does not fit .*version"):
        read_recipe(tmp_path)


def test_a_builder_of_a_recipe_is_the_builder_that_wrote_it(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    template = tmp_path / "mine.tmpl"
    template.write_text(
        '{{define "user"}}Tables: {{.DDL_CONTEXT}}{{end}}'
        '{{define "assistant"}}<|fim_prefix|>{{.PREFIX}}<|fim_suffix|>{{.SUFFIX}}<|fim_middle|>{{end}}'
    )
    state = Completion("a", "b", ddl_context="c")
    for options in ({}, {"fim_order": "spm"}, {"template": "plain"}, {"template": str(template)}):
        first = PromptBuilder(copy.deepcopy(tokenizer), MODEL, data_options(**options))
        again = PromptBuilder(copy.deepcopy(tokenizer), MODEL, data_options(), first.recipe)
        assert again.build(state) == first.build(state)
        assert again.recipe == first.recipe


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, None),
        ({"fim_order": "psm", "template": "chat"}, None),
        ({"fim_order": "spm"}, "data.fim_order is spm.* order psm"),
        ({"template": "plain"}, "data.template is plain.*template chat"),
    ],
)
def test_an_experiment_may_not_contradict_it(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, options: dict[str, Any], said: str | None
) -> None:
    if said is None:
        assert PromptBuilder(copy.deepcopy(tokenizer), MODEL, data_options(**options), recipe).recipe == recipe
        return
    with pytest.raises(FimError, match=said):
        PromptBuilder(copy.deepcopy(tokenizer), MODEL, data_options(**options), recipe)


def test_tokens_of_the_experiment(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
    other = MODEL.model_copy(update={"fim_tokens": FimTokenNames(prefix="[A]", suffix="[B]", middle="[C]")})
    with pytest.raises(FimError, match=r"model\.fim_tokens differs from the tokens"):
        PromptBuilder(copy.deepcopy(tokenizer), other, data_options(), recipe)
    end = MODEL.model_copy(update={"end_token": "<|endoftext|>"})
    builder = PromptBuilder(copy.deepcopy(tokenizer), end, data_options(), recipe)
    assert builder.tokens.end == "<|endoftext|>"
    assert "end in <|endoftext|>, as the experiment says; the data set says <|im_end|>" in builder.notice


def test_the_end_token_of_the_data_set_is_trained(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
    other = replace(recipe, fim_tokens=replace(recipe.fim_tokens, end="<|endoftext|>"))
    assert PromptBuilder(copy.deepcopy(tokenizer), MODEL, data_options(), other).tokens.end == "<|endoftext|>"


def test_a_tokenizer_without_its_tokens_is_refused(recipe: Recipe) -> None:
    lacking = byte_level([*FIM, "<|im_end|>"], regex=CL100K, eos="<|im_end|>")
    with pytest.raises(FimError, match=r"lacks control tokens .*<\|im_start\|>"):
        PromptBuilder(lacking, MODEL, data_options(), recipe)
    # Of the same tokens, but without chat markup: it gets that of the recipe.
    bare = byte_level([*FIM, "<|im_start|>", "<|im_end|>"], regex=CL100K, eos="<|im_end|>")
    assert PromptBuilder(bare, MODEL, data_options(), recipe).recipe.example == recipe.example


def test_tokens_that_were_added_are_added_again() -> None:
    plain = byte_level(["<|end|>"], regex=CL100K, eos="<|end|>")
    recipe = PromptBuilder(copy.deepcopy(plain), MODEL, data_options(template="plain")).recipe
    assert set(recipe.fim_tokens.added) == set(FIM)
    again = PromptBuilder(plain, MODEL, data_options(), recipe)
    assert set(again.tokens.added) == set(FIM)
    assert again.recipe.example == recipe.example
