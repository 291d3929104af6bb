"""What completes held-out rows: a model, or a rule that any model must beat."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fim_core.config import DataConfig, ModelConfig
from fim_core.config.evaluation import EvaluationConfig
from fim_core.errors import FimError
from fim_core.evaluation.generate import completion_text, generate, load_for_inference, stop_ids_of
from fim_core.evaluation.rows import EvalSet, TokenIds
from fim_core.evaluation.scores import Prediction
from fim_core.modeling.attention import attention_name, register, select_backend
from fim_core.modeling.load import supports_prefix_tree
from fim_core.modeling.loss import batch_loss, logit_softcap
from fim_core.packing import IGNORE_INDEX, Rows, collate, plan_packs
from fim_core.prompts import PromptBuilder
from fim_core.records.schema import Completion

RECIPE = "fim.json"
_PROMPT_OPTIONS = ("template", "fim_order", "control_tokens")


@dataclass(frozen=True)
class Predictor:
    """A model with its tokenizer; `folder` is the checkpoint that it came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """The model of a checkpoint, ready to generate."""
        return cls(*load_for_inference(folder), folder)


def predict(
    predictor: Predictor, prompts: Sequence[TokenIds], targets: Sequence[TokenIds], options: EvaluationConfig
) -> list[Prediction]:
    """A greedy completion of each prompt, and the cross entropy of the gold one.

    Args:
        predictor: the model.
        prompts: token ids of each prompt.
        targets: token ids of each gold completion, end token included.
        options: limits of generation.
    """
    generations = generate(
        predictor.folder if options.backend == "vllm" else predictor.model,
        prompts,
        stop_ids=stop_ids_of(predictor.model),
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        backend=options.backend,
    )
    losses = cross_entropies(predictor.model, prompts, targets)
    return [
        Prediction(
            completion_text(predictor.tokenizer, generation.token_ids),
            generation.stopped,
            nats if math.isfinite(nats) else math.inf,
            tokens,
        )
        for generation, (nats, tokens) in zip(generations, losses, strict=True)
    ]


def cross_entropies(
    model: PreTrainedModel, prompts: Sequence[TokenIds], targets: Sequence[TokenIds], *, max_length: int = 8192
) -> list[tuple[float, int]]:
    """Summed cross entropy (nats) of each row's targets after its prompt, and their number.

    The loss of training, over packs that share prompt prefixes.

    Args:
        model: a causal language model.
        prompts, targets: token ids; no prompt is empty.
        max_length: tokens of a pack; a longer row is a pack of its own.
    """
    tokens = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
    labels = [[IGNORE_INDEX] * len(prompt) + target for prompt, target in zip(prompts, targets, strict=True)]
    rows = Rows.from_lists(tokens, labels)
    shares, _ = supports_prefix_tree(model.config)
    longest = max(max_length, *map(len, tokens))
    plan = plan_packs(rows, strategy="prefix_tree" if shares else "none", max_length=longest, seed=0, epoch=0)
    results = [(math.nan, 0)] * len(rows)
    model.requires_grad_(False)
    with _pack_attention(model, shares), torch.no_grad():
        for pack in plan:
            sums = batch_loss(model, collate([pack], rows).to(model.device))
            for row, nats, count in zip(pack.rows.tolist(), sums.row_totals.tolist(), sums.row_targets.tolist(), strict=True):
                results[row] = (nats, count)
    return results


def tokens_for(predictor: Predictor, evaluated: EvalSet, reference: Path) -> tuple[list[TokenIds], list[TokenIds]]:
    """Prompts and targets of the held-out rows in the tokens of this predictor.

    They are those of the data set if the predictor was trained with the tokenizer and template of the checkpoint
    `reference`; otherwise they are built anew. A row that its markup cannot hold becomes an empty list.

    Raises:
        FimError: the checkpoint does not tell how its prompts are built.
    """
    if _recipe(predictor.folder) == _recipe(reference):
        return evaluated.prompts, evaluated.targets
    recipe = json.loads((predictor.folder / RECIPE).read_text(encoding="utf-8"))
    builder = PromptBuilder(
        predictor.tokenizer, ModelConfig.model_validate(recipe["model"]), DataConfig.model_validate(recipe["data"])
    )
    end = recipe["fim_tokens"]["end_id"]
    prompts, targets = [], []
    for row, state in zip(evaluated.rows, evaluated.states, strict=True):
        prompt = builder.encode(state) if isinstance(state, Completion) else []
        prompts.append(list(prompt) if isinstance(prompt, list) else [])
        targets.append([*predictor.tokenizer.encode(row.completion, add_special_tokens=False), end])
    return prompts, targets


def _recipe(folder: Path) -> tuple[bytes, dict[str, object]]:
    """What decides the tokens of a checkpoint's prompts."""
    try:
        recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        tokenizer = (folder / "tokenizer.json").read_bytes()
    except FileNotFoundError as error:
        raise FimError(
            f"The checkpoint {folder} lacks {Path(error.filename).name}, which says how its prompts are built. "
            "Evaluate a checkpoint that the trained_checkpoint asset wrote."
        ) from error
    return tokenizer, {name: recipe["data"].get(name) for name in _PROMPT_OPTIONS} | recipe["fim_tokens"]


@contextmanager
def _pack_attention(model: PreTrainedModel, shares: bool) -> Iterator[None]:
    """Have the model attend over packs inside the block, if it can."""
    before = model.config._attn_implementation
    if shares:
        register()
        backend, _ = select_backend("auto", model.device, model.dtype, logit_softcap(model.config))
        model.set_attn_implementation(attention_name(backend))
    try:
        yield
    finally:
        model.set_attn_implementation(before)
