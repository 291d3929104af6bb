"""What completes held-out rows: a model, or a rule that any model must beat."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fim_core.config.evaluation import EvaluationConfig
from fim_core.errors import FimError
from fim_core.evaluation.generate import completion_text, generate, load_for_inference, stop_ids_of
from fim_core.evaluation.rows import TokenIds
from fim_core.evaluation.scores import Prediction
from fim_core.modeling.attention import attention_name, register, select_backend
from fim_core.modeling.load import supports_prefix_tree
from fim_core.modeling.loss import batch_loss
from fim_core.packing import IGNORE_INDEX, Rows, collate, plan_packs
from fim_core.prompts import PromptBuilder
from fim_core.records.schema import Completion
from fim_core.serving.prompting import RECIPE, TEMPLATE, load_prompt_builder

_PROMPT_OPTIONS = ("fim_order", "control_tokens", "mask_secrets")
_PROMPT_FILES = (TEMPLATE, "chat_template.jinja")


@dataclass(frozen=True)
class Predictor:
    """A model that completes.

    Attributes:
        model: in eval mode.
        tokenizer: of its prompts and completions.
        stop_ids: tokens that end a completion.
        folder: the checkpoint whose tokenizer and prompts it uses.
        weights: the folder that the model was loaded from; None for one that is only in memory.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    stop_ids: set[int]
    folder: Path
    weights: Path | None

    @classmethod
    def load(cls, folder: Path) -> Predictor:
        """The model of a checkpoint, ready to generate."""
        model, tokenizer = load_for_inference(folder)
        assert isinstance(tokenizer, PreTrainedTokenizerFast), "load_tokenizer refuses others"
        return cls(model, tokenizer, stop_ids_of(model), folder, weights=folder)


def predict(
    predictor: Predictor, prompts: Sequence[TokenIds], targets: Sequence[TokenIds], options: EvaluationConfig
) -> list[Prediction]:
    """A greedy completion of each prompt, and the cross entropy of the gold one.

    Args:
        predictor: the model.
        prompts: token ids of each prompt; for one without tokens the prediction is empty and has no loss.
        targets: token ids of each gold completion, end token included.
        options: limits of generation, and its engine; a model that is only in memory is run by transformers.
    """
    rows = len(prompts)
    usable = [place for place, prompt in enumerate(prompts) if prompt]
    prompts, targets = [prompts[i] for i in usable], [targets[i] for i in usable]
    loaded_anew = predictor.weights if options.backend == "vllm" else None
    generations = generate(
        loaded_anew or predictor.model,
        prompts,
        stop_ids=predictor.stop_ids,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        backend="vllm" if loaded_anew else "transformers",
    )
    losses = cross_entropies(predictor.model, prompts, targets)
    made = {
        place: Prediction(
            completion_text(predictor.tokenizer, generation.token_ids),
            generation.stopped,
            nats if math.isfinite(nats) else math.inf,
            tokens,
        )
        for place, generation, (nats, tokens) in zip(usable, generations, losses, strict=True)
    }
    return [made.get(place, Prediction("")) for place in range(rows)]


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
    longest = max([max_length, *map(len, tokens)])
    plan = plan_packs(rows, strategy="prefix_tree" if shares else "none", max_length=longest, seed=0, epoch=0)
    results = [(math.nan, 0)] * len(rows)
    model.requires_grad_(False)
    with _pack_attention(model, shares), torch.no_grad():
        for pack in plan:
            sums = batch_loss(model, collate([pack], rows).to(model.device))
            for row, nats, count in zip(
                pack.rows.tolist(), sums.row_totals.tolist(), sums.row_targets.tolist(), strict=True
            ):
                results[row] = (nats, count)
    return results


def same_prompts(first: Path, second: Path) -> bool:
    """Whether two checkpoints turn the same editor state into the same tokens.

    Raises:
        FimError: one of them does not tell how its prompts are built.
    """
    return _markup(first) == _markup(second)


def build_tokens(
    predictor: Predictor, states: Sequence[Completion | None], completions: Sequence[str]
) -> tuple[list[TokenIds], list[TokenIds]]:
    """Prompts and targets as the predictor's checkpoint builds them.

    Args:
        predictor: the model.
        states: the editor's states; where there is none, or the markup cannot hold it, the prompt is an empty list.
        completions: gold completions.

    Raises:
        FimError: the checkpoint does not tell how its prompts are built.
    """
    builder = load_prompt_builder(predictor.folder, predictor.tokenizer)
    encoder, end = builder.encoder, json.loads(_read(predictor.folder, RECIPE))["fim_tokens"]["end_id"]
    targets = [[*encoder.join([text]), end] for text in completions]
    return [_prompt(builder, state) for state in states], targets


def _prompt(builder: PromptBuilder, state: Completion | None) -> TokenIds:
    if state is None:
        return []
    try:
        return builder.encode(state)
    except FimError:  # user text that this markup cannot tell from a control token
        return []


def _markup(folder: Path) -> dict[str, object]:
    """All that decides a prompt's tokens."""
    recipe = json.loads(_read(folder, RECIPE))
    texts = {name: (folder / name).read_bytes() for name in _PROMPT_FILES if (folder / name).is_file()}
    template = {} if TEMPLATE in texts else {"template": recipe["data"].get("template")}
    options = {name: recipe["data"].get(name) for name in _PROMPT_OPTIONS}
    cut = {"granularity": recipe.get("granularity")}
    return {"tokenizer": _read(folder, "tokenizer.json")} | texts | template | options | cut | recipe["fim_tokens"]


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise FimError(
            f"The checkpoint {folder} lacks {name}, which says how its prompts are built. "
            "Take a checkpoint that the trained_checkpoint asset wrote."
        ) from error


@contextmanager
def _pack_attention(model: PreTrainedModel, shares: bool) -> Iterator[None]:
    """Have the model attend over packs inside the block, if it can."""
    before = model.config._attn_implementation
    if shares:
        register()
        softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
        backend, _ = select_backend("auto", model.device, model.dtype, softcap)
        model.set_attn_implementation(attention_name(backend))
    try:
        yield
    finally:
        model.set_attn_implementation(before)
