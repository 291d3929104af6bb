"""Stage `trained_checkpoint`: token ids → checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fim_core.config import Experiment, portable
from fim_core.config.deepspeed import DIAGNOSTICS
from fim_core.folders.checkpoint import CheckpointFolder
from fim_core.folders.prompts import PromptsFolder
from fim_core.pipeline.stage import Build, Stage
from fim_core.pipeline.stages.content import has_dropout, pretrained_digest
from fim_core.prompt_format.recipe import Recipe, read_recipe, write_recipe
from fim_core.store import Artifact, Store
from fim_core.training.job import TrainResult, Work

_OPTIONS = (
    "type",
    "seed",
    "epochs",
    "max_steps",
    "min_steps",
    "exit_iteration",
    "eval_interval",
    "optimizer",
    "scheduler",
    "loss",
)
_DECIDE_WITH_DROPOUT = ("sequence_parallel_size", "tiled_mlp_compute")
"""Options that change results only by rounding, except for the random numbers of dropout."""


def _options(experiment: Experiment) -> dict[str, Any]:
    """What decides the weights, up to rounding.

    The number of ranks does so in two ways: by the rows of an optimizer step if they are counted per rank, and by the
    random numbers of dropout, of which each rank draws its own.
    """
    deepspeed = {key: value for key, value in experiment.deepspeed.items() if key not in DIAGNOSTICS}
    options = experiment.model_dump(mode="json", include=set(_OPTIONS)) | {
        "model": portable(experiment.model.model_dump(mode="json")),
        "data": experiment.data.model_dump(mode="json", include={"sample_weighted_loss", "pack_length"})
        | {"pack_samples": experiment.data.packing},
        "deepspeed": deepspeed,
        "batch_rows": _batch_rows(experiment),
    }
    if has_dropout(experiment.model):
        options["dropout"] = experiment.model_dump(mode="json", include=set(_DECIDE_WITH_DROPOUT))
        options["dropout"]["world_size"] = experiment.launcher.world_size()
    return options


def _batch_rows(experiment: Experiment) -> int:
    """Rows of an optimizer step over all ranks."""
    if not experiment.batch_grows_with_ranks:
        return experiment.rows_per_step(data_ranks=1)
    return experiment.rows_per_step(max(1, experiment.launcher.world_size() // experiment.sequence_parallel_size))


def _pretrained(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    place = experiment.model.name_or_path
    return {"pretrained": pretrained_digest(place)} if place else {}


def _build(build: Build) -> dict[str, Any]:
    from fim_core.launchers.launch import launch

    work, dataset, prompts = build.work(), build.inputs["tokenized_dataset"], build.inputs["fim_prompts"]
    result = launch(
        build.experiment,
        dataset.path,
        PromptsFolder(prompts.path).tokenizer,
        work,
        on_event=build.on_event,
        provenance={asset: artifact.version for asset, artifact in build.inputs.items()},
        start=build.start,
    )
    shutil.copytree(result.model, build.output, dirs_exist_ok=True)
    files, output = Work(work), CheckpointFolder(build.output)
    shutil.copy2(files.metrics, output.events)
    # Hidden files are left by an attempt that was killed while writing a plan.
    shutil.copytree(files.packs, output.packs, ignore=shutil.ignore_patterns(".*"))
    if files.trackers.is_dir():
        # wandb's symlinks to its latest run would be dangling.
        shutil.copytree(files.trackers, output.trackers, ignore=_links)
    # Serving must split prompts for encoding exactly as tokenization did.
    recipe = replace(read_recipe(build.output), granularity=dataset.counts["granularity"])
    write_recipe(build.output, recipe)
    _write_card(build, result, recipe)
    counts = asdict(result)
    del counts["model"]
    return counts


def _write_card(build: Build, result: TrainResult, recipe: Recipe) -> None:
    """Write the model card into the checkpoint."""
    from fim_core.pipeline.accounting import RowAccount
    from fim_core.pipeline.model_card import model_card

    prompts, dataset = build.inputs["fim_prompts"], build.inputs["tokenized_dataset"]
    card = model_card(
        build.experiment,
        result,
        recipe,
        rows=RowAccount.of(prompts.counts, dataset.counts),
        provenance={asset: artifact.version for asset, artifact in build.inputs.items()},
    )
    CheckpointFolder(build.output).card.write_text(card, encoding="utf-8")


def _links(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_symlink()]


trained_checkpoint = Stage(
    asset="trained_checkpoint",
    upstream=("fim_prompts", "tokenized_dataset"),
    code=(__name__, "fim_core.training.worker"),
    options=_options,
    outside=_pretrained,
    build=_build,
    tables=lambda folder: {"checkpoint": folder},
)
