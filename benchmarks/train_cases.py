"""Models and rows of the training benchmark."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import AutoConfig

from fim_core.config import DataConfig, Experiment, ModelConfig
from fim_core.packing import plan_packs
from fim_core.packing.plan import Strategy
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.prompts import train_tokenizer_on, write_fim_prompts
from fim_core.records.sources import write_raw_completions
from fim_core.tokenization import load_rows, tokenize_prompts
from fim_core.training.job import Job, Work

SEED = 42
DEMO_ROWS = 3000
TRAINED_VOCABULARY = 8192


@dataclass(frozen=True)
class Case:
    """One model of the benchmark.

    Attributes:
        title: title in the table.
        options: options of `model.config` without the vocabulary size; for a pretrained model, what the table shows of it.
        vocabulary: entries of the output layer; the tokenizer may have fewer.
        own_tokenizer: whether --tokenizer replaces the trained tokenizer.
        pretrained: folder of a pretrained model; None for random weights.
        lora: train adapters instead of all weights.
        dtype: number format that the model computes in, `model.dtype` of an experiment.
    """

    title: str
    options: dict[str, Any]
    vocabulary: int
    own_tokenizer: bool
    pretrained: str | None = None
    lora: bool = False
    dtype: str = "fp32"

    @property
    def lr(self) -> float:
        """Learning rate for these weights."""
        if self.pretrained is None:
            return 1e-3
        return 2e-4 if self.lora else 2e-5

    def model_section(self, tokenizer: str) -> dict[str, Any]:
        """The `model` section of an experiment that trains this case with a tokenizer."""
        adapters = {"peft_config": {"peft_type": "LORA"}} if self.lora else {}
        if self.pretrained is not None:
            return {"name_or_path": self.pretrained, "tokenizer": tokenizer, "dtype": self.dtype, **adapters}
        config = {"model_type": "qwen3", "tie_word_embeddings": True, "vocab_size": self.vocabulary, **self.options}
        return {"config": config, "tokenizer": tokenizer, "dtype": self.dtype, **adapters}


CASES = {
    "a": Case(
        "small body, full vocabulary",
        {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
        },
        151_936,
        True,
    ),
    "b": Case(
        "body large against its vocabulary",
        {
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
        },
        TRAINED_VOCABULARY,
        False,
    ),
}


def pretrained_case(folder: str, *, lora: bool) -> Case:
    """A pretrained model, all of its weights or adapters."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    title = f"{Path(folder).name}, {'LoRA' if lora else 'all weights'}"
    shape = {name: getattr(config, name) for name in ("num_hidden_layers", "hidden_size")}
    return Case(title, shape, config.vocab_size, True, pretrained=folder, lora=lora)


@dataclass(frozen=True)
class Sample:
    """The rows of a measurement: whole packs, drawn at random from the plan of the whole export.

    So they share prefixes as much as the rows of an epoch do, which neither the first rows of an export nor rows drawn
    one by one would.

    Attributes:
        rows, tokens, targets: of the sample; distinct_tokens: with shared prefixes once.
        sharing: tokens over distinct tokens in the plan of the whole export.
        export_rows: rows of the export that are trained on.
    """

    rows: int
    tokens: int
    distinct_tokens: int
    targets: int
    sharing: float
    export_rows: int


def experiment_of(
    case: Case, folder: Path, *, packing: Strategy, rows: int, steps: int, max_length: int, recompute: bool = False
) -> Experiment:
    """An experiment whose optimizer steps each take all rows of the sample."""
    return Experiment.model_validate(
        {
            "seed": SEED,
            "model": case.model_section(str(folder / "prompts" / "tokenizer")),
            "data": {"sources": [{"type": "demo"}], "pack_samples": packing, "pack_length": max_length},
            "batch_rows": rows,
            "epochs": steps,
            "activation_checkpointing": recompute,
            "optimizer": {"lr": case.lr, "weight_decay": 0.0},
            "scheduler": {"name": "constant"},
            "deepspeed": {"gradient_clipping": 1.0},
        }
    )


def job_of(case: Case, folder: Path, *, work: str, **options: Any) -> Job:
    """The experiment on the sample in `folder`, with a work folder of its own; `options` as of `experiment_of`."""
    experiment = experiment_of(case, folder, **options)
    return Job(experiment, folder / "sample", folder / "prompts" / "tokenizer", Work(folder / work), "one")


def tokenize_export(
    folder: Path,
    *,
    max_length: int,
    export: Path | None = None,
    tokenizer: str | None = None,
    pretrained: str | None = None,
    vocabulary: int = TRAINED_VOCABULARY,
    demo_rows: int = DEMO_ROWS,
    eval_fraction: float = 0.0,
) -> None:
    """Put the export's rows as a data set into `folder/tokens`.

    Args:
        export: a file; None for so many rows of the demo.
        tokenizer: a folder or hub id; None trains one of that vocabulary on the rows.
        pretrained: a base model's folder; its prompts have no chat markup.
    """
    source = {"type": "demo", "rows": demo_rows}
    if export is not None:
        source = {"type": "fim_completions", "name_or_path": str(export)}
    template = "chat" if pretrained is None else "plain"
    options = {"max_length": max_length, "eval_fraction": eval_fraction, "template": template}
    data = DataConfig.model_validate({"sources": [source], **options})
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "raw.parquet"
    write_raw_completions(data, raw)
    model = ModelConfig(config={"model_type": "qwen3"}, tokenizer="given")
    if pretrained is not None:
        model = ModelConfig(name_or_path=pretrained)
    if tokenizer is None:
        chosen = train_tokenizer_on(raw, data=data, model=model, vocab_size=vocabulary, seed=SEED)
    else:
        chosen = load_tokenizer(tokenizer)
    write_fim_prompts(raw, folder / "prompts", data=data, model=model, tokenizer=chosen, seed=SEED)
    tokenize_prompts(folder / "prompts", folder / "tokens", data=data)


def draw_sample(folder: Path, *, rows: int, max_length: int) -> Sample:
    """Draw at least `--rows` rows from `folder/tokens` and store them with a description in `folder/sample`."""
    everything = load_rows(folder / "tokens", "train")
    plan = plan_packs(everything, strategy="prefix_tree", pack_length=max_length)
    members: list[int] = []
    for place in np.random.default_rng(SEED).permutation(len(plan)).tolist():
        members += plan[place].rows.tolist()
        if len(members) >= rows:
            break
    table = datasets.load_from_disk(str(folder / "tokens" / "dataset"))["train"]
    chosen = table.select(sorted(members)).flatten_indices()
    splits = datasets.DatasetDict({"train": chosen, "eval": chosen.select([0])})
    splits.save_to_disk(str(folder / "sample" / "dataset"))
    drawn = load_rows(folder / "sample", "train")
    stats = plan_packs(drawn, strategy="prefix_tree", pack_length=max_length).stats
    sample = Sample(
        rows=len(drawn),
        tokens=stats.tokens,
        distinct_tokens=stats.distinct_tokens,
        targets=int(np.sum(drawn.targets_per_row)),
        sharing=plan.stats.tokens / plan.stats.distinct_tokens,
        export_rows=len(everything),
    )
    (folder / "sample.json").write_text(json.dumps(asdict(sample)))
    return sample


def read_sample(folder: Path) -> Sample:
    """What `draw_sample` stored."""
    return Sample(**json.loads((folder / "sample.json").read_text()))
