"""Modelfile of Ollama: its template gives the prompt of training."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
from export_checkpoints import write_checkpoint
from transformers import PreTrainedTokenizerFast

from fim_core.errors import FimError
from fim_core.exporting.modelfile import modelfile, template_of
from fim_core.inference.prompting import load_prompt_builder
from fim_core.prompts import Prompt, PromptBuilder
from fim_core.records.schema import Completion


def rendered(template: str, prompt: str, suffix: str) -> str:
    """What Go's text/template makes of the few actions that the templates use."""
    known = {".Prompt": prompt, ".Suffix": suffix, '"{{"': "{{", "if .Suffix": "", "end": ""}
    return re.sub(r"\{\{ (.*?) \}\}", lambda match: known[match[1]], template)


@pytest.fixture(params=["psm", "spm"])
def builder(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> PromptBuilder:
    folder = write_checkpoint(tmp_path / "model", tokenizer, "qwen3", order=request.param)
    return load_prompt_builder(folder, copy.deepcopy(tokenizer))


@pytest.mark.parametrize(("prefix", "suffix"), [("SELECT a, ", " FROM t"), ("SELECT 1", ""), ("", "\nFROM t")])
def test_template_gives_the_prompt_of_training(builder: PromptBuilder, prefix: str, suffix: str) -> None:
    expected = builder.build(Completion(prefix, suffix))
    assert isinstance(expected, Prompt)
    assert rendered(template_of(builder, starts_with_bos=False), prefix, suffix) == expected.text


def test_start_token_is_left_to_llama_cpp(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    starting = copy.deepcopy(tokenizer)
    starting.bos_token, starting.chat_template = "<|endoftext|>", None
    number = starting.bos_token_id
    starting.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", number)]
    )
    folder = write_checkpoint(tmp_path / "model", starting, "qwen3")
    builder = load_prompt_builder(folder, copy.deepcopy(starting))
    assert builder.sequence_start == "<|endoftext|>"
    assert template_of(builder, starts_with_bos=False).startswith("<|endoftext|>")
    assert not template_of(builder, starts_with_bos=True).startswith("<|endoftext|>")


def test_parameters(builder: PromptBuilder) -> None:
    text = modelfile(builder, "m.gguf", ends=["<|im_end|>", "</s>"], starts_with_bos=False, context_length=32768)
    lines = text.splitlines()
    assert "FROM ./m.gguf" in lines
    assert "PARAMETER temperature 0" in lines
    assert "PARAMETER num_ctx 8192" in lines
    assert [line for line in lines if "stop" in line] == ['PARAMETER stop "<|im_end|>"', 'PARAMETER stop "</s>"']


@pytest.mark.parametrize("text", ['Say """ SQL', "no-break\u00a0space"])
def test_template_that_a_modelfile_cannot_hold(builder: PromptBuilder, text: str) -> None:
    builder.tokenizer.chat_template = None
    builder._markup, builder._opening, builder._opening_spans = None, text, []
    with pytest.raises(FimError, match="Modelfile cannot hold"):
        modelfile(builder, "m.gguf", ends=[], starts_with_bos=False, context_length=512)
