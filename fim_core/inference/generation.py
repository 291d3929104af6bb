"""Greedy generation for many prompts, and loading of checkpoints for inference."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fim_core.errors import FimError
from fim_core.inference.greedy import Token, greedy_tokens
from fim_core.inference.prefix_cache import PrefixCache, why_not_shared
from fim_core.inference.row_progress import Advance
from fim_core.inference.shared_decoding import DecodedRow, decode
from fim_core.inference.vllm_backend import decode_with_vllm
from fim_core.modeling.weights import load_weights
from fim_core.prompt_format.tokens import control_ids, load_tokenizer, require_generation_config
from fim_core.store import require_whole_copy

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generation:
    """One greedy continuation.

    Attributes:
        token_ids: the new tokens, without the stop token.
        stopped: whether a stop token ended it; False if it reached the limit.
        logprobs: log-probability of each new token, and last of the stop token if there is one. Not compared, as it depends
            on the batch through rounding.
    """

    token_ids: list[int]
    stopped: bool
    logprobs: list[float] = field(default_factory=list, compare=False)


def generate(
    model: PreTrainedModel | Path,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: set[int],
    max_new_tokens: int,
    batch_size: int,
    backend: Literal["transformers", "vllm"] = "transformers",
    on_rows: Advance = lambda rows: None,
) -> list[Generation]:
    """Continue each prompt with the most probable tokens, until a stop token or the limit.

    Equals `model.generate(do_sample=False)` on one prompt at a time, without the penalties that a generation config may
    add. Prompts are read in sorted order through one cache, so that common prefixes are computed once, and decoded in
    batches. The result depends on `batch_size` only through rounding, which can decide between two tokens that are equally
    probable up to rounding.

    Args:
        model: a causal language model in eval mode, or the folder of a checkpoint.
        prompts: token ids, at least one each.
        stop_ids: tokens that end a completion.
        max_new_tokens: limit of new tokens, the stop token included.
        batch_size: rows decoded together; ignored by vLLM, which has its own scheduler.
        backend: `vllm` requires that package, a GPU, and a model given as a folder.
        on_rows: called with the number of prompts that have just been completed.

    Returns:
        One result per prompt, in order.

    Raises:
        FimError: a prompt is empty, a limit is below 1, vLLM is not installed, or vLLM is to run a model in memory.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise FimError("max_new_tokens and batch_size must be at least 1.")
    if not all(prompts):
        raise FimError("A prompt has no tokens, so it cannot be continued. Check the template.")
    if not prompts:
        return []
    counts = Counter(tuple(prompt) for prompt in prompts)
    distinct = sorted(counts)
    if backend == "vllm":
        if not isinstance(model, Path):
            raise FimError("`backend: vllm` loads the model itself. Pass the folder of a checkpoint.")
        decoded = decode_with_vllm(model, distinct, stop_ids=stop_ids, max_new_tokens=max_new_tokens)
        results = {prompt: _generation(tokens, stop_ids) for prompt, tokens in zip(distinct, decoded, strict=True)}
        on_rows(len(prompts))
    else:
        network = load_for_inference(model)[0] if isinstance(model, Path) else model
        rows = [DecodedRow(list(prompt), partial(on_rows, counts[prompt])) for prompt in distinct]
        _decode_with_transformers(network, rows, stop_ids, max_new_tokens, batch_size)
        results = {tuple(row.prompt): _generation(row.tokens, stop_ids) for row in rows}
    return [results[tuple(prompt)] for prompt in prompts]


def load_for_inference(checkpoint: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load the model, in eval mode, and the tokenizer of a checkpoint; onto the GPU if there is one.

    On a GPU in the dtype of the checkpoint; on a CPU in float32, which is the fastest there and exact.

    Raises:
        FimError: the folder does not exist, or is not a checkpoint with safetensors weights.
        DamagedFile: a file differs from what was published.
    """
    if not (checkpoint / "config.json").is_file():
        raise FimError(f"There is no checkpoint in {checkpoint}: it needs config.json and *.safetensors.")
    require_whole_copy(checkpoint)
    require_generation_config(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_weights(
        checkpoint, device_map=device, dtype="auto" if device == "cuda" else torch.float32, local_files_only=True
    )
    return model.eval(), load_tokenizer(checkpoint)


def stop_ids_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """The tokens that end a completion: the end tokens of the generation config, and every control token.

    A control token is never part of the text at the cursor, so nothing after one belongs to the completion.

    Raises:
        FimError: the generation config names no end token.
    """
    end = model.generation_config.eos_token_id if model.generation_config else None
    if end is None:
        raise FimError(
            f"{model.name_or_path or 'The model'} has no end token. Set eos_token_id in its generation_config.json."
        )
    return {*(end if isinstance(end, list) else [end]), *control_ids(tokenizer)}


def _decode_with_transformers(
    model: PreTrainedModel, rows: list[DecodedRow], stop_ids: set[int], max_new_tokens: int, batch_size: int
) -> None:
    """Generate the tokens of all rows, which are sorted by prompt."""
    if why := why_not_shared(model):
        log.warning("Prompts are completed one at a time, without sharing common prefixes: %s.", why)
        cache = PrefixCache(model)
        for row in rows:
            for token in greedy_tokens(cache, row.prompt, stop_ids=stop_ids, max_new_tokens=max_new_tokens):
                row.add(token, stop_ids, max_new_tokens)
    else:
        decode(model, rows, stop_ids=stop_ids, max_new_tokens=max_new_tokens, batch_size=batch_size)


def _generation(tokens: list[Token], stop_ids: set[int]) -> Generation:
    stopped = tokens[-1].id in stop_ids
    ids = [token.id for token in tokens]
    return Generation(ids[:-1] if stopped else ids, stopped, [token.logprob for token in tokens])
