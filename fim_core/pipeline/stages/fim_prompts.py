"""Stage `fim_prompts`: raw rows → prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fim_core.config import Experiment, portable
from fim_core.config.model import TrainedTokenizer
from fim_core.folders.prompts import PromptsFolder
from fim_core.folders.raw import RawFolder
from fim_core.pipeline.stage import Build, Stage
from fim_core.pipeline.stages.content import folder_digest
from fim_core.store import Artifact, Store

_OPTIONS = (
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


def _options(experiment: Experiment) -> dict[str, Any]:
    model = experiment.model
    return {
        "data": portable(experiment.data.model_dump(mode="json", include=set(_OPTIONS))),
        "tokenizer": portable(model.model_dump(mode="json", include={"tokenizer", "fim_tokens", "end_token"})),
        "seed": experiment.seed,
    }


def _template_and_tokenizer(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    from fim_core.prompt_format.template import template_path

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
        # It determines which token ends a completion, whatever tokenizer is used.
        found["generation_config"] = folder_digest(pretrained, ("generation_config.json",))
    return found


def _outside(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    return _template_and_tokenizer(experiment, store, inputs) | _stated_form(experiment, inputs)


def _stated_form(experiment: Experiment, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Options of the prompt format that the experiment sets explicitly, if there are finished prompts.

    For these, an explicit default differs from an unset option: what is unset is inferred from the prompts.
    """
    from fim_core.records.schema import FinishedPrompt
    from fim_core.records.shapes import names_of

    raw = inputs.get("raw_completions")
    if raw is None or names_of(FinishedPrompt).isdisjoint(raw.counts["by_source_type"]):
        return {}
    return {"stated": ", ".join(sorted({"template", "fim_order"} & experiment.data.model_fields_set))}


def _build(build: Build) -> dict[str, Any]:
    from fim_core.prompt_format.tokens import load_tokenizer
    from fim_core.prompts import train_tokenizer_on, write_fim_prompts

    experiment, raw = build.experiment, RawFolder(build.inputs["raw_completions"].path).rows
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
        cache=build.cache,
    )
    return asdict(counts)


def _tables(folder: Path) -> dict[str, Path]:
    return {"fim_prompts": PromptsFolder(folder).rows, "rejected": PromptsFolder(folder).rejected}


fim_prompts = Stage(
    asset="fim_prompts",
    upstream=("raw_completions",),
    code=(__name__,),
    options=_options,
    outside=_outside,
    build=_build,
    tables=_tables,
    checks_with=("raw_completions",),
    compares_with_previous=True,
)


def tokenizer_place(experiment: Experiment) -> str | TrainedTokenizer:
    """The experiment's tokenizer: a path, a hub id, or the options for training one."""
    place = experiment.model.tokenizer or experiment.model.name_or_path
    assert place is not None, "validated: a model from scratch has a tokenizer"
    return place
