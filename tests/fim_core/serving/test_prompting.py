"""Prompts in inference against the prompts of the training data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_path import MODEL, data_options, run_data_path
from data_path import completion as raw_row
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import CL100K, byte_level, sentencepiece_like
from tokenizers import AddedToken

from fim_core.config import DataConfig
from fim_core.errors import FimError
from fim_core.inference.prompting import load_prompt_builder
from fim_core.prompt_format.recipe import read_recipe, write_recipe
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.prompts import PromptBuilder, write_fim_prompts
from fim_core.records.schema import CONTEXT_FIELDS, PLACEHOLDER, RAW_SCHEMA, Completion
from fim_core.tokenization import tokenize_prompts
from fim_core.tokenization.encoder import TextEncoder

FIM = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]

SQL = st.text(st.sampled_from("ab1 \n\r\t'\"<|>;,{}.éß漢🙂\u00a0\u2028"), max_size=20)
CONTROL = st.sampled_from(
    ["<|im_end|>", "<|fim_middle|>", "<|endoftext|>", "{{.PREFIX}}", "<|fim_", "<fim_middle>", "▁<MID>", "<|x|> "]
)
TEXT = st.one_of(SQL, st.lists(st.one_of(SQL, CONTROL), max_size=3).map("".join))
COMPLETIONS = st.builds(
    Completion,
    prefix=TEXT,
    suffix=TEXT,
    sql_history=TEXT,
    ddl_context=TEXT,
    last_few_executed=TEXT,
    file_content=TEXT,
)


def checkpoint_for(checkpoint: Path, folder: Path, data: DataConfig) -> Path:
    """A checkpoint trained with these options, as far as prompts go."""
    folder.mkdir(parents=True, exist_ok=True)
    for place in checkpoint.iterdir():
        if place.suffix != ".safetensors":
            shutil.copy(place, folder)
    write_recipe(folder, PromptBuilder(load_tokenizer(checkpoint), MODEL, data).recipe)
    return folder


def train_data(completions: list[Completion], folder: Path, checkpoint: Path, data: DataConfig) -> dict[str, list[int]]:
    """Prompt ids by row_id, as the data path writes them for training."""
    rows = []
    for number, completion in enumerate(completions):
        context = {field: getattr(completion, field) for field in CONTEXT_FIELDS}
        items = [json.dumps(context), completion.prefix + PLACEHOLDER + completion.suffix]
        row: dict[str, Any] = dict.fromkeys(RAW_SCHEMA.names, "")
        row |= {
            "row_id": str(number),
            "source_type": "fim_completions",
            "input": json.dumps([{"type": "text", "text": item} for item in items]),
            "output": "x",
            "held_out": False,
        }
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=RAW_SCHEMA), folder / "raw.parquet")
    write_fim_prompts(
        folder / "raw.parquet",
        folder / "prompts",
        data=data,
        model=MODEL,
        tokenizer=load_tokenizer(checkpoint),
        seed=0,
    )
    tokenize_prompts(folder / "prompts", folder / "tokens", data=data)
    train = datasets.load_from_disk(str(folder / "tokens" / "dataset"))["train"]
    return {row["row_id"]: list(row["input_ids"][: row["prompt_length"]]) for row in train}


@pytest.mark.parametrize("control_tokens", ["reject", "neutralise"])
@pytest.mark.parametrize("fim_order", ["psm", "spm"])
@settings(max_examples=4, deadline=None)
@given(completions=st.lists(COMPLETIONS, min_size=3, max_size=25))
def test_the_same_tokens_as_in_training(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint: Path,
    control_tokens: str,
    fim_order: str,
    completions: list[Completion],
) -> None:
    # The first row has everything, so that no example is without rows that training keeps.
    completions = [Completion("SELECT a,\n  ", "\nFROM t", "h", "d", "l", "f"), *completions]
    folder = tmp_path_factory.mktemp("identity")
    data = DataConfig.model_validate(
        {
            "sources": [{"type": "demo"}],
            "control_tokens": control_tokens,
            "fim_order": fim_order,
            "eval_fraction": 0,
            "max_length": 4096,
        }
    )
    trained = train_data(completions, folder, checkpoint, data)
    place = checkpoint_for(checkpoint, folder / "checkpoint", data)
    builder = load_prompt_builder(place, load_tokenizer(place))
    served = {str(number): builder.encode(completion) for number, completion in enumerate(completions)}
    assert "0" in trained
    assert trained == {row: served[row] for row in trained}


TOKENIZERS = {
    "line": byte_level([*FIM, "<|end|>"], regex=CL100K, eos="<|end|>"),
    "segment": byte_level([*FIM, "<|end|>"], eos="<|end|>"),
    "stripping": byte_level([*FIM, "<|end|>", AddedToken("<|x|>", rstrip=True)], regex=CL100K, eos="<|end|>"),
    "sentencepiece": sentencepiece_like(),
}


@pytest.mark.parametrize("build", TOKENIZERS)
@settings(max_examples=8, deadline=None)
@given(completions=st.lists(COMPLETIONS, min_size=3, max_size=15))
def test_the_same_tokens_for_every_build_of_tokenizer(
    tmp_path_factory: pytest.TempPathFactory, build: str, completions: list[Completion]
) -> None:
    folder = tmp_path_factory.mktemp(build)
    trained, served = both(folder, build, [Completion("SELECT a,\n  ", "\nFROM t", "h", "d", "l", "f"), *completions])
    assert "r0" in trained
    assert trained == {row: served[row] for row in trained}


def test_the_same_tokens_where_training_cut_at_control_tokens_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer that seems to end tokens at line ends and does not: serving cannot know, unless training tells."""
    monkeypatch.setattr(TextEncoder, "_finest", lambda self: "line")
    trained, served = both(tmp_path, "segment", [Completion("a\n  b\n\nc", "\n\nd", ddl_context="x\n\n  y")])
    assert trained == served
    assert read_recipe(tmp_path / "checkpoint").granularity == "segment"


def both(folder: Path, build: str, completions: list[Completion]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Prompt ids by row_id: of the training rows, and as a server encodes them."""
    rows = []
    for state in completions:
        context = {name: getattr(state, name) for name in CONTEXT_FIELDS}
        rows.append(raw_row(state.prefix, state.suffix, "x", context=context))
    done = run_data_path(folder, rows, TOKENIZERS[build], eval_fraction=0, template="plain")
    place = folder / "checkpoint"
    shutil.copytree(folder / "prompts" / "tokenizer", place)
    write_recipe(place, replace(read_recipe(folder / "prompts"), granularity=done.counts.granularity))
    builder = load_prompt_builder(place, load_tokenizer(place))
    trained = {row["row_id"]: list(row["input_ids"][: row["prompt_length"]]) for row in done.rows}
    return trained, {row_id: builder.encode(completions[int(row_id[1:])]) for row_id in trained}


def test_a_control_token_in_user_text_is_ordinary_text(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    builder = load_prompt_builder(checkpoint, tokenizer)
    assert builder.data.control_tokens == "reject", "the case is about models whose training rejected such rows"
    text = "a <|fim_middle|> b <|im_end|>"
    ids = builder.encode(Completion(text, text))
    plain = builder.encode(Completion("", ""))
    for token in ("<|fim_middle|>", "<|im_end|>"):
        token_id = tokenizer.convert_tokens_to_ids(token)
        assert ids.count(token_id) == plain.count(token_id)
    assert tokenizer.decode(ids).count(text) == 2


def test_a_custom_template_is_part_of_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    block = "<|fim_prefix|>{{.PREFIX}}<|fim_suffix|>{{.SUFFIX}}<|fim_middle|>"
    template = tmp_path / "gone_since_training.tmpl"
    template.write_text('{{define "assistant"}}' + block + "{{end}}", encoding="utf-8")
    data = DataConfig.model_validate({"sources": [{"type": "demo"}], "template": str(template)})
    folder = checkpoint_for(checkpoint, tmp_path / "checkpoint", data)
    template.unlink()
    tokenizer = load_tokenizer(folder)
    assert str(tmp_path) not in (folder / "fim.json").read_text(encoding="utf-8"), "a path of this machine"
    ids = load_prompt_builder(folder, tokenizer).encode(Completion("a", "b"))
    assert tokenizer.decode(ids) == "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"


def test_another_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = checkpoint_for(checkpoint, tmp_path / "checkpoint", data_options())
    recipe = read_recipe(folder)
    tokens = replace(recipe.fim_tokens, middle_id=recipe.fim_tokens.middle_id + 1)
    write_recipe(folder, replace(recipe, fim_tokens=tokens))
    with pytest.raises(FimError, match=r"FIM tokens of the tokenizer .* differ"):
        load_prompt_builder(folder, load_tokenizer(folder))


@pytest.mark.parametrize("content", ["{}", "[]", "{", json.dumps({"data": {"sources": []}, "model": {}})])
def test_a_recipe_that_does_not_fit(checkpoint: Path, tmp_path: Path, content: str) -> None:
    folder = checkpoint_for(checkpoint, tmp_path / "checkpoint", data_options())
    (folder / "fim.json").write_text(content, encoding="utf-8")
    with pytest.raises(FimError, match=r"does not fit|cannot be read"):
        load_prompt_builder(folder, load_tokenizer(folder))
    (folder / "fim.json").unlink()
    with pytest.raises(FimError, match=r"no fim\.json"):
        load_prompt_builder(folder, load_tokenizer(folder))
