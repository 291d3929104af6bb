"""Generation ends at every end token, and control tokens never become text."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import MODEL_TOKENS, like_model, long_run
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig, Source
from fim_core.inference.generation import Generation, generate, load_for_inference, stop_ids_of
from fim_core.modeling.save import save_model
from fim_core.prompt_format.tokens import FimTokens, control_ids
from fim_core.prompts import PromptBuilder
from fim_core.serving.completer import Completer
from fim_core.tokenization.encoder import TextEncoder

SCRATCH = ModelConfig(config={"model_type": "llama"}, tokenizer="given")


def scripted(vocabulary: int, following: Mapping[int, int]) -> PreTrainedModel:
    """A model that writes `following[token]` after each token, or the token again.

    Its layers add nothing, its embeddings are the unit vectors, and its output layer is the table.
    """
    size = 2 * ((vocabulary + 1) // 2)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=size,
            intermediate_size=2,
            num_hidden_layers=1,
            num_attention_heads=1,
            head_dim=2,
            eos_token_id=None,
            bos_token_id=None,
        )
    )
    layer = model.model.layers[0]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(vocabulary, size))
        model.lm_head.weight.zero_()
        for token in range(vocabulary):
            model.lm_head.weight[following.get(token, token), token] = 1.0
    return model.eval()


def prompts_of(name: str, *, chat: bool) -> tuple[PreTrainedTokenizerFast, PromptBuilder]:
    tokenizer = like_model(name, chat=chat)
    order = "spm" if name == "codestral" else "psm"
    data = DataConfig(sources=[Source(type="demo")], template="chat" if chat else "plain", fim_order=order)
    return tokenizer, PromptBuilder(tokenizer, SCRATCH, data)


def saved(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tokens: FimTokens) -> Path:
    save_model(model, tokenizer, tokens.end_ids, folder)
    return folder


CASES = [(name, chat) for name, model in MODEL_TOKENS.items() for chat in (False, True) if model.turn_end or not chat]


@pytest.mark.parametrize(("name", "chat"), CASES)
def test_generation_ends_at_every_end_token_and_every_control_token(name: str, chat: bool, tmp_path: Path) -> None:
    tokenizer, builder = prompts_of(name, chat=chat)
    select, star, x = (tokenizer.encode(text, add_special_tokens=False)[0] for text in ("S", "*", "x"))
    ends = {*builder.tokens.end_ids, *control_ids(tokenizer)}
    assert set(builder.tokens.end_ids) <= control_ids(tokenizer)
    model = scripted(len(tokenizer), {select: star})
    folder = saved(tmp_path / "model", model, tokenizer, builder.tokens)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == list(builder.tokens.end_ids)
    loaded, loaded_tokenizer = load_for_inference(folder)
    stop_ids = stop_ids_of(loaded, loaded_tokenizer)
    assert stop_ids == ends
    for end in ends:
        with torch.no_grad():
            loaded.lm_head.weight.copy_(scripted(len(tokenizer), {select: star, star: end, end: x}).lm_head.weight)
        result = generate(loaded, [[select]], stop_ids=stop_ids, max_new_tokens=5, batch_size=1)
        assert result == [Generation([star], stopped=True)]
        deltas = list(Completer(loaded, loaded_tokenizer, builder).deltas([select], max_tokens=5))
        assert "".join(delta.text for delta in deltas) == "*"
        assert (deltas[-1].finish_reason, deltas[-1].tokens) == ("stop", 2)


QWEN, BUILDER = prompts_of("qwen", chat=False)
ENCODER = TextEncoder(QWEN)
STOPS = {*BUILDER.tokens.end_ids, *control_ids(QWEN)}


@long_run(short=30)
@given(st.integers(0, 2**32))
def test_completions_contain_no_control_token(seed: int) -> None:
    """Whatever follows what, with a third of all steps leading to a control token."""
    rng = random.Random(seed)
    control = sorted(control_ids(QWEN))
    words = [token for token in range(len(QWEN)) if token not in control and "<" not in QWEN.decode([token])]
    following = {token: rng.choice(control if rng.random() < 0.3 else words) for token in range(len(QWEN))}
    model = scripted(len(QWEN), following)
    starts = [[token] for token in rng.sample(words, 6)]
    for prompt, made in zip(
        starts, generate(model, starts, stop_ids=STOPS, max_new_tokens=12, batch_size=4), strict=True
    ):
        written, token = [], following[prompt[0]]
        while token not in control and len(written) < 12:
            written.append(token)
            token = following[token]
        assert made == Generation(written, stopped=len(written) < 12)
        text = ENCODER.decode(made.token_ids)
        assert text == QWEN.decode(written)
        assert not any(mark in text for mark in MODEL_TOKENS["qwen"].tokens)
