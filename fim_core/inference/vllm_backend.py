"""Greedy decoding by vLLM, an optional engine for GPUs.

Written after the source of vLLM 0.33.0 (`vllm.LLM`, `vllm.SamplingParams`, `vllm.inputs.TokensPrompt`) and tested against a
stand-in for that package. No GPU has run it yet.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig

from fim_core.errors import FimError

SHARE_OF_FREE_MEMORY = 0.9


def decode_with_vllm(
    checkpoint: Path, prompts: Sequence[Sequence[int]], *, stop_ids: set[int], max_new_tokens: int
) -> list[list[int]]:
    """Continue prompts with the most probable tokens; vLLM shares their prefixes by caching blocks of tokens.

    The engine lives as long as the call, and takes what GPU memory is free, for the model's own loss is computed beside
    it with transformers.

    Args:
        checkpoint: folder that vLLM loads the model from.
        prompts: token ids; as ids, so that no text is tokenized a second time in another way.
        stop_ids: tokens that end a completion, instead of those that the model's config names.
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
            "evaluation.backend: vllm needs vLLM and a GPU: pip install 'fim-assets[vllm]', or use backend: transformers."
        ) from error
    engine = LLM(
        model=str(checkpoint),
        # `auto` would compute a float32 checkpoint in half precision.
        dtype=_dtype_of(checkpoint),
        max_model_len=max(map(len, prompts)) + max_new_tokens,
        enable_prefix_caching=True,
        # Neither penalties nor temperatures of generation_config.json.
        generation_config="vllm",
        gpu_memory_utilization=_share_of_memory(),
        seed=0,
    )
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=max_new_tokens,
        stop_token_ids=sorted(stop_ids),
        # Only these tokens end a completion, not what the model's config names beside them.
        ignore_eos=True,
        detokenize=False,
    )
    outputs = engine.generate([TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts], sampling)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    del engine
    gc.collect()  # ends the engine's process, which gives its memory back
    return tokens


def _dtype_of(checkpoint: Path) -> str:
    dtype = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False).dtype
    return "auto" if dtype is None else str(dtype).removeprefix("torch.")


def _share_of_memory() -> float:
    """The part of the GPU's whole memory to ask for: vLLM refuses to start where less than that is free."""
    if not torch.cuda.is_available():
        return SHARE_OF_FREE_MEMORY
    free, total = torch.cuda.mem_get_info()
    return SHARE_OF_FREE_MEMORY * free / total
