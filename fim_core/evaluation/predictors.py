"""Predictions of a model for held-out rows: greedy completions, and the loss of the gold completions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fim_core.config.evaluation import EvaluationConfig
from fim_core.evaluation.eval_set import TokenIds
from fim_core.inference.generation import Generation, generate, load_for_inference, stop_ids_of
from fim_core.inference.row_progress import Advance, RowProgress
from fim_core.metrics.rows import Prediction
from fim_core.modeling.attention import attention_name, register, select_backend
from fim_core.modeling.load import supports_prefix_tree
from fim_core.modeling.loss import batch_loss
from fim_core.modeling.support import head_size
from fim_core.packing import IGNORE_INDEX, Rows, collate, plan_packs
from fim_core.tokenization.encoder import TextEncoder


@dataclass(frozen=True)
class Predictor:
    """A model with its tokenizer, ready to complete prompts.

    Attributes:
        model: in eval mode.
        tokenizer: tokenizer of prompts and completions.
        stop_ids: tokens that end a completion.
        folder: the checkpoint whose tokenizer and prompt format it uses.
        weights: the folder that the model was loaded from; None for a model that is only in memory.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    stop_ids: set[int]
    folder: Path
    weights: Path | None

    @cached_property
    def encoder(self) -> TextEncoder:
        """Encoder of the tokenizer, which decodes completions."""
        return TextEncoder(self.tokenizer)

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """Load the model of a checkpoint."""
        model, tokenizer = load_for_inference(folder)
        assert isinstance(tokenizer, PreTrainedTokenizerFast), "load_tokenizer refuses others"
        return cls(model, tokenizer, stop_ids_of(model, tokenizer), folder, weights=folder)


def predict(
    predictor: Predictor,
    prompts: Sequence[TokenIds],
    targets: Sequence[TokenIds],
    options: EvaluationConfig,
    progress: RowProgress | None = None,
) -> list[Prediction | None]:
    """Complete each prompt greedily, and compute the cross entropy of its gold completion.

    Args:
        predictor: the model.
        prompts: token ids of each prompt.
        targets: token ids of each gold completion, end token included.
        options: limits and backend of generation; a model that is only in memory is run by transformers.
        progress: reports the number of completed rows, and then of computed losses.

    Returns:
        One prediction per prompt; None for a prompt without tokens.
    """
    progress = progress or RowProgress()
    rows = len(prompts)
    usable = [place for place, prompt in enumerate(prompts) if prompt]
    prompts, targets = [prompts[i] for i in usable], [targets[i] for i in usable]
    generations = complete(predictor, prompts, options, progress.start("completions", len(prompts)))
    losses = cross_entropies(
        predictor.model, prompts, targets, on_rows=progress.start("losses of gold completions", len(prompts))
    )
    made = {
        place: Prediction(
            predictor.encoder.decode(generation.token_ids),
            generation.stopped,
            loss.nats if math.isfinite(loss.nats) else math.inf,
            loss.tokens,
            loss.end_nats if math.isfinite(loss.end_nats) else math.inf,
            predictor.encoder.decode(target[:-1]),
            generation.logprobs,
        )
        for place, generation, loss, target in zip(usable, generations, losses, targets, strict=True)
    }
    return [made.get(place) for place in range(rows)]


def complete(
    predictor: Predictor, prompts: Sequence[TokenIds], options: EvaluationConfig, on_rows: Advance
) -> list[Generation]:
    """Complete each prompt greedily; see `predict` for the arguments. No prompt is empty."""
    reloaded_from = predictor.weights if options.backend == "vllm" else None
    return generate(
        reloaded_from or predictor.model,
        prompts,
        stop_ids=predictor.stop_ids,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        backend="vllm" if reloaded_from else "transformers",
        on_rows=on_rows,
    )


class RowLoss(NamedTuple):
    """The cross entropy of one row's target, in nats.

    Attributes:
        nats: sum over the target's tokens, the end token included.
        tokens: number of these tokens.
        end_nats: cross entropy of the end token.
    """

    nats: float
    tokens: int
    end_nats: float


def cross_entropies(
    model: PreTrainedModel,
    prompts: Sequence[TokenIds],
    targets: Sequence[TokenIds],
    *,
    pack_length: int = 8192,
    on_rows: Advance = lambda rows: None,
) -> list[RowLoss]:
    """Compute the cross entropy of each row's target after its prompt.

    This is the training loss, computed over packs that share prompt prefixes.

    Args:
        model: a causal language model.
        prompts, targets: token ids; prompts are not empty, and each target ends in the end token.
        pack_length: tokens per pack; a longer row gets its own pack.
        on_rows: called with the number of rows that have just been computed.
    """
    tokens = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
    labels = [[IGNORE_INDEX] * len(prompt) + target for prompt, target in zip(prompts, targets, strict=True)]
    rows = Rows.from_lists(tokens, labels)
    shares, _ = supports_prefix_tree(model.config)
    plan = plan_packs(rows, strategy="prefix_tree" if shares else "none", pack_length=pack_length)
    results = [RowLoss(math.nan, 0, math.nan)] * len(rows)
    model.requires_grad_(False)
    with _pack_attention(model, shares), torch.no_grad():
        for pack in plan:
            sums = batch_loss(model, collate([pack], rows).to(model.device))
            # Targets are in row order, so the last one of each row is its end token.
            end_losses = sums.losses[sums.row_targets.cumsum(0) - 1]
            figures = (sums.row_totals, sums.row_targets, end_losses)
            for row, *of_row in zip(pack.rows.tolist(), *(values.tolist() for values in figures), strict=True):
                results[row] = RowLoss(*of_row)
            on_rows(len(pack.rows))
    return results


@contextmanager
def _pack_attention(model: PreTrainedModel, shares: bool) -> Iterator[None]:
    """Within the block, use attention over packs if the model supports it."""
    before = model.config._attn_implementation
    if shares:
        register()
        config = model.config.get_text_config()
        softcap = getattr(config, "attn_logit_softcapping", None)
        backend, _ = select_backend("auto", model.device, model.dtype, softcap, head_size(config))
        model.set_attn_implementation(attention_name(backend))
    try:
        yield
    finally:
        model.set_attn_implementation(before)
