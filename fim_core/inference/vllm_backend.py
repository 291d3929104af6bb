"""Greedy decoding with vLLM, an optional engine for GPUs.

Written for vLLM 0.33.0 (`vllm.LLM`, `vllm.SamplingParams`, `vllm.inputs.TokensPrompt`) and tested with a fake of that package.
It has not been run on a GPU yet.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from fim_core.errors import FimError
from fim_core.inference.greedy import Token

SHARE_OF_FREE_MEMORY = 0.9


def decode_with_vllm(
    checkpoint: Path, prompts: Sequence[Sequence[int]], *, stop_ids: set[int], max_new_tokens: int
) -> list[list[Token]]:
    """Continue prompts with the most probable tokens; vLLM shares prefixes by caching blocks of tokens.

    The engine exists only during the call and uses the free part of the GPU memory, since transformers holds the model as
    well, to compute losses.

    Args:
        checkpoint: folder of the model.
        prompts: token ids, so that vLLM does not tokenize the text in another way.
        stop_ids: tokens that end a completion, instead of those in the model's config.
        max_new_tokens: limit of new tokens, the stop token included.

    Returns:
        The new tokens of each prompt, the stop token included.

    Raises:
        FimError: vLLM is not installed.
    """
    try:
        from vllm import LLM, SamplingParams
        from vllm.inputs import TokensPrompt
    except ImportError as error:
        raise FimError(
            "evaluation.backend: vllm needs vLLM and a GPU. Run pip install 'fim-assets[vllm]', or set backend: transformers."
        ) from error
    engine = LLM(
        model=str(checkpoint),
        # With `auto`, vLLM would run a float32 checkpoint in half precision.
        dtype=_dtype_of(checkpoint),
        max_model_len=max(map(len, prompts)) + max_new_tokens,
        enable_prefix_caching=True,
        # Ignore penalties and temperatures of generation_config.json.
        generation_config="vllm",
        gpu_memory_utilization=_share_of_memory(),
        seed=0,
    )
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=max_new_tokens,
        stop_token_ids=sorted(stop_ids),
        # Only the stop tokens end a completion, not other end tokens of the model's config.
        ignore_eos=True,
        detokenize=False,
        # Only the log-probability of the chosen token.
        logprobs=0,
    )
    outputs = engine.generate([TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts], sampling)
    tokens = [_tokens(output.outputs[0]) for output in outputs]
    del engine
    gc.collect()  # ends the engine's process and frees its memory
    return tokens


def _tokens(completion: Any) -> list[Token]:
    """The tokens of a `vllm.CompletionOutput`."""
    chosen = zip(completion.token_ids, completion.logprobs, strict=True)
    return [Token(token, by_token[token].logprob) for token, by_token in chosen]


def _dtype_of(checkpoint: Path) -> str:
    dtype = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False).dtype
    return "auto" if dtype is None else str(dtype).removeprefix("torch.")


def _share_of_memory() -> float:
    """The share of the GPU's total memory to request: vLLM does not start if less than that is free."""
    if not torch.cuda.is_available():
        return SHARE_OF_FREE_MEMORY
    free, total = torch.cuda.mem_get_info()
    return SHARE_OF_FREE_MEMORY * free / total
