"""Shared-prefix decoding against plain `model.generate`, one prompt at a time.

In float64: there two orders of summation never turn one greedy choice into another, so the comparison is exact.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Starcoder2Config,
    set_seed,
)

from fim_core.errors import FimError
from fim_core.inference.generation import Generation, generate, load_for_inference, stop_ids_of
from fim_core.inference.greedy import greedy_tokens
from fim_core.inference.prefix_cache import PrefixCache, common_prefix, why_not_shared
from fim_core.prompt_format.tokens import control_ids
from fim_core.tokenization.encoder import TextEncoder

VOCABULARY = 40
STOP = {3, 4}
WINDOW = 16
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "head_dim": 8,
    # Large weights, so that a random model does not repeat one token whatever the prompt.
    "initializer_range": 0.4,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen3": lambda: Qwen3Config(**SIZES, num_attention_heads=4, num_key_value_heads=2),
    "llama": lambda: LlamaConfig(**SIZES, num_attention_heads=4, num_key_value_heads=4),
    "qwen3_sliding": lambda: Qwen3Config(
        **SIZES,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=1,
    ),
    "gemma2": lambda: Gemma2Config(**SIZES, num_attention_heads=4, num_key_value_heads=2, sliding_window=6),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES,
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "mistral": lambda: MistralConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, sliding_window=6),
    "phi3": lambda: Phi3Config(**SIZES, num_attention_heads=4, num_key_value_heads=2, sliding_window=6),
    "starcoder2": lambda: Starcoder2Config(
        **SIZES, num_attention_heads=4, num_key_value_heads=2, sliding_window=6, tie_word_embeddings=False
    ),
}


def build(kind: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    set_seed(11)
    return AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=dtype).eval()


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    return {kind: build(kind) for kind in CONFIGS}


def one_by_one(model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int) -> list[Generation]:
    """The reference: transformers' own greedy search."""
    results = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(STOP),
            pad_token_id=0,
        )
        new = output[0, len(prompt) :].tolist()
        results.append(Generation(new[:-1], True) if new[-1] in STOP else Generation(new, False))
    return results


def tree_of_prompts(seed: int, count: int) -> list[list[int]]:
    """Prompts in random order that share starts of several depths, with copies and with prefixes of each other."""
    draw = random.Random(seed)

    def words(low: int, high: int) -> list[int]:
        return [draw.randrange(VOCABULARY) for _ in range(draw.randint(low, high))]

    system, contexts = words(5, 8), [words(2, 9) for _ in range(3)]
    prompts = [system + draw.choice(contexts) + words(0, 7) for _ in range(count)]
    return [*prompts, prompts[0], prompts[1][:4], system, words(1, 1)]


@pytest.mark.parametrize("kind", CONFIGS)
def test_equals_one_by_one(models: dict[str, PreTrainedModel], kind: str) -> None:
    prompts = tree_of_prompts(seed=5, count=20)
    expected = one_by_one(models[kind], prompts, max_new_tokens=14)
    assert {result.stopped for result in expected} == {True, False}, "the case must hold both endings"
    assert len({tuple(result.token_ids) for result in expected}) > 10, "the case must hold many completions"
    one_way = why_not_shared(models[kind]) is not None  # such models have no batches
    for batch_size in (8,) if one_way else (1, 3, 8, 100):
        got = generate(models[kind], prompts, stop_ids=STOP, max_new_tokens=14, batch_size=batch_size)
        assert got == expected, batch_size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("beyond", [-1, 0, 1, WINDOW])
def test_rows_below_at_and_above_the_window(dtype: torch.dtype, beyond: int) -> None:
    """The tokens of the longest row's last step fill the window, all but one of it, or more than it."""
    model, new = build("gemma3", dtype), 8
    prompts = [prompt[:length] for prompt in tree_of_prompts(seed=3, count=8) for length in (3, 7)]
    longest = WINDOW + beyond - (new - 1)
    prompts += [(prompts[at] * WINDOW)[:longest] for at in (1, 3, 5)]
    prompts.append([*prompts[-1][:-1], 9])
    assert max(map(len, prompts)) + new - 1 == WINDOW + beyond
    expected = one_by_one(model, prompts, new)
    assert any(len(p) == longest and not e.stopped for p, e in zip(prompts, expected, strict=True)), "none gets there"
    for batch_size in (1, 4, 50):
        assert generate(model, prompts, stop_ids=STOP, max_new_tokens=new, batch_size=batch_size) == expected


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_equals_one_by_one_in_float32(kind: str) -> None:
    model = build(kind, torch.float32)
    prompts = tree_of_prompts(seed=2, count=12)
    got = generate(model, prompts, stop_ids=STOP, max_new_tokens=10, batch_size=5)
    assert got == one_by_one(model, prompts, max_new_tokens=10)
    assert got == generate(model, prompts, stop_ids=STOP, max_new_tokens=10, batch_size=5)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=9),
    batch_size=st.integers(1, 6),
    max_new_tokens=st.integers(1, 6),
)
def test_any_prompts_and_sizes(
    models: dict[str, PreTrainedModel], kind: str, prompts: list[list[int]], batch_size: int, max_new_tokens: int
) -> None:
    got = generate(models[kind], prompts, stop_ids=STOP, max_new_tokens=max_new_tokens, batch_size=batch_size)
    assert got == one_by_one(models[kind], prompts, max_new_tokens)


def test_shared_tokens_are_computed_once(models: dict[str, PreTrainedModel]) -> None:
    prompts = sorted(tree_of_prompts(seed=9, count=15))
    cache = PrefixCache(models["qwen3"])
    for prompt in prompts:
        cache.read(prompt)
    nodes = {tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)}
    # A prompt that was read before, or that is the start of one, computes its last token again for its logits.
    again = len(prompts) - len({tuple(prompt) for prompt in prompts})
    assert cache.computed == len(nodes) + again


def test_cache_survives_a_failed_forward_pass(
    models: dict[str, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["qwen3"]
    cache = PrefixCache(model)
    cache.read([1, 2, 3, 4])
    last_layer = model.model.layers[-1]
    with monkeypatch.context() as patch:
        patch.setattr(last_layer, "forward", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cache.read([1, 2, 3, 5, 6])
    torch.testing.assert_close(cache.read([1, 2, 3, 7]), PrefixCache(model).read([1, 2, 3, 7]))


def test_attention_is_restored(models: dict[str, PreTrainedModel]) -> None:
    model = models["llama"]
    before = model.config._attn_implementation
    generate(model, [[1, 2], [1, 3]], stop_ids=set(), max_new_tokens=3, batch_size=2)
    assert model.config._attn_implementation == before


def test_which_models_share(models: dict[str, PreTrainedModel]) -> None:
    assert [kind for kind, model in models.items() if why_not_shared(model) is not None] == ["gemma2"]


def test_warns_if_it_cannot_share(models: dict[str, PreTrainedModel], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        generate(models["gemma2"], [[1, 2]], stop_ids=STOP, max_new_tokens=2, batch_size=1)
    assert "soft-caps its attention scores" in caplog.text


@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
def test_reports_completed_rows(models: dict[str, PreTrainedModel], kind: str) -> None:
    prompts, done = tree_of_prompts(seed=4, count=9), []
    generate(models[kind], prompts, stop_ids=STOP, max_new_tokens=6, batch_size=3, on_rows=done.append)
    assert sum(done) == len(prompts) == 13
    assert len(done) == len({tuple(prompt) for prompt in prompts}), "rows of one prompt are done at once"


def test_greedy_tokens_yields_the_stop_token_and_ends(models: dict[str, PreTrainedModel]) -> None:
    model = models["qwen3"]
    endless = list(greedy_tokens(PrefixCache(model), [1, 2, 3], stop_ids=set(), max_new_tokens=8))
    assert len(endless) == 8
    stop = endless[2].id
    tokens = list(greedy_tokens(PrefixCache(model), [1, 2, 3], stop_ids={stop}, max_new_tokens=8))
    assert tokens == endless[: [token.id for token in endless].index(stop) + 1]


@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
def test_logprobs_are_those_of_a_plain_forward_pass(models: dict[str, PreTrainedModel], kind: str) -> None:
    prompts = tree_of_prompts(seed=5, count=6)
    for prompt, made in zip(
        prompts, generate(models[kind], prompts, stop_ids=STOP, max_new_tokens=14, batch_size=3), strict=True
    ):
        count = len(made.logprobs)
        assert count == len(made.token_ids) + made.stopped
        with torch.no_grad():
            logits = models[kind](torch.tensor([prompt + made.token_ids])).logits[0]
        best = logits.log_softmax(-1).max(-1).values[len(prompt) - 1 :][:count]
        torch.testing.assert_close(torch.tensor(made.logprobs, dtype=best.dtype), best, atol=1e-4, rtol=1e-4)


@given(first=st.lists(st.integers(0, 2), max_size=8), second=st.lists(st.integers(0, 2), max_size=8))
def test_common_prefix(first: list[int], second: list[int]) -> None:
    expected = 0
    while expected < min(len(first), len(second)) and first[expected] == second[expected]:
        expected += 1
    assert common_prefix(first, second) == expected


def test_rejects_invalid_prompts_and_limits(models: dict[str, PreTrainedModel]) -> None:
    with pytest.raises(FimError, match="has no tokens"):
        generate(models["qwen3"], [[1], []], stop_ids=STOP, max_new_tokens=3, batch_size=2)
    with pytest.raises(FimError, match="at least 1"):
        generate(models["qwen3"], [[1]], stop_ids=STOP, max_new_tokens=0, batch_size=2)
    assert generate(models["qwen3"], [], stop_ids=STOP, max_new_tokens=3, batch_size=2) == []


def test_load_for_inference(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build("qwen3", torch.float32)
    model.generation_config.eos_token_id = [3, 4]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = load_for_inference(tmp_path)
    assert not loaded.training
    assert stop_ids_of(loaded, loaded_tokenizer) == {3, 4, *control_ids(tokenizer)}
    text = "SELECT  1 ,\n 'ü'"
    assert TextEncoder(loaded_tokenizer).decode([*tokenizer.encode(text), tokenizer.eos_token_id]) == text
    assert generate(tmp_path, [[1, 2]], stop_ids=STOP, max_new_tokens=4, batch_size=1) == generate(
        model, [[1, 2]], stop_ids=STOP, max_new_tokens=4, batch_size=1
    )


def test_load_for_inference_rejects_pickles_and_missing_weights(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(FimError, match="no checkpoint"):
        load_for_inference(tmp_path)
    model = build("qwen3", torch.float32)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FimError, match="cannot be loaded"):
        load_for_inference(tmp_path)


def test_stop_ids_need_an_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build("qwen3", torch.float32)
    model.generation_config.eos_token_id = 7
    assert stop_ids_of(model, tokenizer) == {7, *control_ids(tokenizer)}
    model.generation_config.eos_token_id = None
    with pytest.raises(FimError, match="eos_token_id"):
        stop_ids_of(model, tokenizer)
