"""The stages that prepare data: exports → raw rows → prompts → tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fim_core.config import Experiment, portable
from fim_core.config.data import DataConfig
from fim_core.config.model import TrainedTokenizer
from fim_core.pipeline.stage import Build, Stage
from fim_core.store import Artifact, Store

RAW_ROWS = "raw_completions.parquet"

_SOURCE_OPTIONS = (
    "type",
    "split",
    "sample_ratio",
    "sample_count",
    "sample_seed",
    "kwargs",
    "input_col",
    "output_col",
    "type_col",
    "columns",
    "render",
    "role_mapping",
    "content_key",
    "sql",
    "rows",
    "seed",
)
_PROMPT_OPTIONS = (
    "placeholder",
    "null_marks",
    "template",
    "fim_order",
    "control_tokens",
    "skip_empty_output",
    "skip_empty_prefix",
    "mask_secrets",
    "eval_fraction",
    "group_by",
    "ignore_empty_think",
)


def _raw_options(experiment: Experiment) -> dict[str, Any]:
    data = experiment.data
    return {
        part: [source.model_dump(mode="json", include=set(_SOURCE_OPTIONS)) for source in sources]
        for part, sources in (("sources", data.sources), ("eval_sources", data.eval_sources))
    }


def _exports(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    from fim_core.records.sources import digest_sources

    return {"exports": digest_sources(experiment.data)}


def _build_raw(build: Build) -> dict[str, Any]:
    from fim_core.records.sources import write_raw_completions

    return asdict(write_raw_completions(build.experiment.data, build.output / RAW_ROWS))


raw_completions = Stage(
    asset="raw_completions",
    upstream=(),
    code=("records", "demo", "batches.py", "parallel.py", "recipe.py"),
    options=_raw_options,
    outside=_exports,
    build=_build_raw,
)


def _prompt_options(experiment: Experiment) -> dict[str, Any]:
    model = experiment.model
    return {
        "data": portable(experiment.data.model_dump(mode="json", include=set(_PROMPT_OPTIONS))),
        "tokenizer": portable(model.model_dump(mode="json", include={"tokenizer", "fim_tokens", "end_token"})),
        "seed": experiment.seed,
    }


def _template_and_tokenizer(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    from fim_core.template import template_path

    template = template_path(experiment.data.template).read_bytes()
    found = {"template": hashlib.sha256(template).hexdigest()[:16]}
    if isinstance(place := tokenizer_place(experiment), str):
        found["tokenizer"] = folder_digest(
            place,
            (
                "tokenizer*",
                "special_tokens_map.json",
                "chat_template*",
                "*.model",
                "vocab*",
                "merges*",
                "added_tokens.json",
                "generation_config.json",
            ),
        )
    if experiment.model.tokenizer is not None and (pretrained := experiment.model.name_or_path):
        # It says which token ends a completion, whatever tokenizer is used.
        found["generation_config"] = folder_digest(pretrained, ("generation_config.json",))
    return found


def _what_prompts_follow(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    return _template_and_tokenizer(experiment, store, inputs) | _stated_form(experiment, inputs)


def _stated_form(experiment: Experiment, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Which options the experiment gives, where a default that is written out differs from one that is not.

    The form of finished prompts is looked for in them, as far as the experiment does not state it.
    """
    raw = inputs.get("raw_completions")
    if raw is None or "prompt_response" not in raw.counts["by_source_type"]:
        return {}
    return {"stated": ", ".join(sorted({"template", "fim_order"} & experiment.data.model_fields_set))}


def _build_prompts(build: Build) -> dict[str, Any]:
    from fim_core.prompts import train_tokenizer_on, write_fim_prompts
    from fim_core.tokens import load_tokenizer

    experiment, raw = build.experiment, build.inputs["raw_completions"].path / RAW_ROWS
    place = tokenizer_place(experiment)
    if isinstance(place, TrainedTokenizer):
        tokenizer = train_tokenizer_on(
            raw,
            data=experiment.data,
            model=experiment.model,
            vocab_size=place.vocab_size,
            seed=experiment.seed,
        )
    else:
        tokenizer = load_tokenizer(place)
    counts = write_fim_prompts(
        raw,
        build.output,
        data=experiment.data,
        model=experiment.model,
        tokenizer=tokenizer,
        seed=experiment.seed,
        parts=build.parts,
    )
    return asdict(counts)


fim_prompts = Stage(
    asset="fim_prompts",
    upstream=("raw_completions",),
    code=(
        "prompts",
        "template.py",
        "templates",
        "tokens.py",
        "recipe.py",
        "families.py",
        "tokenization/encoder.py",
        "records/schema.py",
        "records/parse.py",
        "records/repair.py",
        "demo/tokenizer.py",
        "batches.py",
        "parts.py",
    ),
    options=_prompt_options,
    outside=_what_prompts_follow,
    build=_build_prompts,
)


def _token_options(experiment: Experiment) -> dict[str, Any]:
    return {
        "data": experiment.data.model_dump(mode="json", include={"max_length", "pack_length", "mask_inputs"})
        | {"pack_samples": experiment.data.packing},
        "batch_rows": _planned_batch(experiment),
        "seed": experiment.seed,
    }


def _planned_batch(experiment: Experiment) -> int:
    """Rows of a batch, as far as they are known before ranks are started."""
    return experiment.rows_per_step(experiment.launcher.num_processes or 1)


def _build_tokens(build: Build) -> dict[str, Any]:
    from fim_core.packing import Rows, plan_packs
    from fim_core.tokenization import load_rows, tokenize_prompts

    data: DataConfig = build.experiment.data
    counts = asdict(tokenize_prompts(build.inputs["fim_prompts"].path, build.output, data=data, parts=build.parts))
    rows: Rows = load_rows(build.output, "train")
    plan = plan_packs(
        rows,
        strategy=data.packing,
        pack_length=data.pack_length,
        batch_rows=_planned_batch(build.experiment),
        seed=build.experiment.seed,
    )
    plan.write(build.output / "packs.parquet")
    trained = int(rows.targets_per_row.sum()) / max(plan.batches, 1)
    packing = {"strategy": data.packing, **asdict(plan.stats), "trained_tokens_per_batch": trained}
    return counts | {"packing": packing}


tokenized_dataset = Stage(
    asset="tokenized_dataset",
    upstream=("fim_prompts",),
    code=("tokenization", "packing", "tokens.py", "families.py", "recipe.py", "parallel.py", "batches.py", "parts.py"),
    options=_token_options,
    build=_build_tokens,
)


def tokenizer_place(experiment: Experiment) -> str | TrainedTokenizer:
    """Where the experiment's tokenizer comes from: a path or hub id, or the order to train one."""
    place = experiment.model.tokenizer or experiment.model.name_or_path
    assert place is not None, "validated: a model from scratch names a tokenizer"
    return place


def folder_digest(place: str, patterns: tuple[str, ...]) -> str:
    """Content hash of the files of a local folder that match; a hub id stands for itself."""
    folder = Path(place)
    if not folder.is_dir():
        return place
    hasher = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
        with file.open("rb") as content:
            hasher.update(json.dumps([file.name, hashlib.file_digest(content, "sha256").hexdigest()]).encode())
    return hasher.hexdigest()[:16]
