"""The base model, the weights that training started from, and its cached predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import torch
from transformers import AutoConfig, GenerationConfig

from fim_core.batch_cache import BatchCache
from fim_core.config.evaluation import EvaluationConfig
from fim_core.config.model import ModelConfig
from fim_core.errors import FimError
from fim_core.evaluation.eval_set import EvalSet
from fim_core.evaluation.predictors import Predictor, predict
from fim_core.inference.generation import stop_ids_of
from fim_core.inference.row_progress import RowProgress
from fim_core.metrics.rows import Prediction
from fim_core.modeling.load import build_model, training_dtype
from fim_core.modeling.support import causal_model
from fim_core.prompt_format.recipe import read_recipe
from fim_core.prompt_format.tokens import load_tokenizer


class BaseUnavailable(FimError):
    """The base model cannot be loaded."""


@dataclass(frozen=True)
class Base:
    """The source of the base model, and the cache of its predictions.

    Attributes:
        load: loads the model; raises FimError if that is not possible.
        cache: predictions of this base model under the same code; None disables caching.
    """

    load: Callable[[], Predictor]
    cache: BatchCache | None = None


def load_base(model: ModelConfig, checkpoint: Path, *, seed: int) -> Predictor:
    """Load the model as it is before training: embeddings grown for added tokens, without adapters.

    Args:
        model: section `model` of the experiment that trained `checkpoint`.
        checkpoint: provides the tokenizer, prompts and end tokens, and on a GPU the dtype.
        seed: seed of the experiment; it decides the weights of a model that is trained from scratch.

    Raises:
        FimError: the model cannot be loaded.
    """
    tokenizer = load_tokenizer(checkpoint)
    added = read_recipe(checkpoint).fim_tokens.added
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    dtype = config.dtype if device.type == "cuda" else torch.float32
    # Random weights depend on the dtype that they are drawn in.
    drawn_as = training_dtype(model, device) if model.name_or_path is None else dtype
    network = causal_model(
        build_model(
            model.model_copy(update={"type": "huggingface", "peft_config": None}),
            tokenizer,
            seed=seed,
            device=device,
            dtype=drawn_as,
            new_token_ids=[tokenizer.get_vocab()[token] for token in added],
        )
    )
    torch.nn.Module.to(network, dtype)
    network.set_attn_implementation("sdpa")
    network.config.use_cache = True
    network.generation_config = GenerationConfig.from_pretrained(checkpoint)
    return Predictor(network.eval(), tokenizer, stop_ids_of(network, tokenizer), checkpoint, weights=None)


def predict_with_base(
    base: Base,
    checkpoint: Path,
    evaluated: EvalSet,
    options: EvaluationConfig,
    progress: RowProgress | None = None,
) -> Sequence[Prediction | None]:
    """Predict held-out rows with the base model, or read its predictions from the cache.

    The cache key covers the tokens of the rows, the tokenizer, the end tokens, the limits of generation and the device.

    Raises:
        BaseUnavailable: no predictions are cached, and the base model cannot be loaded.
    """

    def make(rows: pa.RecordBatch) -> pa.RecordBatch:
        try:
            predictor = base.load()
        except FimError as error:
            raise BaseUnavailable(str(error)) from error
        return _to_batch(predict(predictor, evaluated.prompts, evaluated.targets, options, progress))

    rows = pa.RecordBatch.from_pydict({"prompt": evaluated.prompts, "target": evaluated.targets}, schema=_TOKENS)
    if base.cache is None:
        return _from_batch(make(rows))
    cache = base.cache.keyed_also_by(
        checkpoint / "tokenizer.json",
        checkpoint / "generation_config.json",
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    found, _ = cache.get_or_compute(rows, make)
    return _from_batch(found)


_TOKENS = pa.schema({"prompt": pa.list_(pa.int32()), "target": pa.list_(pa.int32())})


def _to_batch(predictions: Sequence[Prediction | None]) -> pa.RecordBatch:
    made = [{} if prediction is None else asdict(prediction) for prediction in predictions]
    return pa.RecordBatch.from_pydict({f.name: [row.get(f.name) for row in made] for f in fields(Prediction)})


def _from_batch(batch: pa.RecordBatch) -> list[Prediction | None]:
    return [None if row["text"] is None else Prediction(**row) for row in batch.to_pylist()]
