"""Stage `tokenized_dataset`: prompts → token ids and labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fim_core.config import Experiment
from fim_core.folders.tokenized import TokenizedFolder
from fim_core.pipeline.stage import Build, Stage


def _options(experiment: Experiment) -> dict[str, Any]:
    return {"data": experiment.data.model_dump(mode="json", include={"max_length", "mask_inputs"})}


def _build(build: Build) -> dict[str, Any]:
    from fim_core.tokenization import tokenize_prompts

    prompts = build.inputs["fim_prompts"].path
    return asdict(tokenize_prompts(prompts, build.output, data=build.experiment.data, cache=build.cache))


def _tables(folder: Path) -> dict[str, Path]:
    files = TokenizedFolder(folder)
    return {"tokenized_dataset": files.dataset, "not_tokenized": files.rejected, "changed": files.changed}


tokenized_dataset = Stage(
    asset="tokenized_dataset",
    upstream=("fim_prompts",),
    code=(__name__,),
    options=_options,
    build=_build,
    tables=_tables,
    checks_with=("fim_prompts",),
)
