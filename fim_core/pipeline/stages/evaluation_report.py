"""Stage `evaluation_report`: checkpoint → report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fim_core.champion.registry import champion_before, champion_weights
from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.folders.raw import RawFolder
from fim_core.folders.report import ReportFolder
from fim_core.hub import require_place
from fim_core.pipeline.code_version import code_version
from fim_core.pipeline.stage import Build, Stage
from fim_core.pipeline.stages.content import pretrained_digest
from fim_core.store import Artifact, Store, digest

if TYPE_CHECKING:
    from fim_core.evaluation.base_model import Base
    from fim_core.evaluation.predictors import Predictor


def _options(experiment: Experiment) -> dict[str, Any]:
    return {
        "evaluation": experiment.evaluation.model_dump(mode="json"),
        # What the latency depends on; everything else in the report does not.
        **({"served": _served(experiment)} if experiment.evaluation.latency_rows else {}),
        "show_samples": experiment.metadata.show_samples,
        "seed": experiment.seed,
    }


def _served(experiment: Experiment) -> dict[str, Any]:
    return {"serving": experiment.serving.model_dump(mode="json"), "code": code_version("fim_core.serving.latency")}


def _champion_and_base(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    # A report without the base model must be made again once the base's weights are available.
    trained_from = inputs["trained_checkpoint"].manifest["inputs"].get("pretrained")
    place = experiment.model.name_or_path
    is_gone = place is not None and trained_from != place and not Path(place).is_dir()
    champion = champion_before(store, experiment.name, inputs["trained_checkpoint"].version)
    return {"champion": champion.version if champion else "none"} | ({"base": "missing"} if is_gone else {})


def _build(build: Build) -> dict[str, Any]:
    from fim_core.evaluation.run import evaluate
    from fim_core.pipeline.report_latency import measure_report_latency

    inputs = build.inputs
    champion = champion_before(build.store, build.experiment.name, inputs["trained_checkpoint"].version)
    return evaluate(
        build.experiment,
        checkpoint=inputs["trained_checkpoint"].path,
        raw=RawFolder(inputs["raw_completions"].path).rows,
        prompts=inputs["fim_prompts"].path,
        dataset=inputs["tokenized_dataset"].path,
        output=build.output,
        champion=champion_weights(champion) if champion else None,
        base=_base(build),
        measure_latency=partial(measure_report_latency, build.experiment, inputs["trained_checkpoint"].path)
        if build.experiment.evaluation.latency_rows
        else None,
        on_event=build.on_event,
    )


def _base(build: Build) -> Base:
    """The model before training. Its predictions are cached across trainings."""
    from fim_core.evaluation.base_model import Base, load_base

    experiment, checkpoint = build.experiment, build.inputs["trained_checkpoint"]
    trained_from = checkpoint.manifest["inputs"].get("pretrained")

    def load() -> Predictor:
        if (place := experiment.model.name_or_path) is not None:
            require_place(place, "model")
            if pretrained_digest(place) != trained_from:
                raise FimError(
                    f"The weights in {place} have changed since the checkpoint was trained from them. Train again, or "
                    "restore them and make the report again with force."
                )
        return load_base(experiment.model, checkpoint.path, seed=experiment.seed)

    model = experiment.model
    weights = {"config": model.config, "dtype": model.dtype} if model.config is not None else trained_from
    # The seed matters for a pretrained model as well: it initializes the embeddings of added tokens.
    options = {"hf_config_kwargs": model.hf_config_kwargs, "seed": experiment.seed}
    identity = digest({"base": weights, "options": options, "code": code_version("fim_core.evaluation.base_model")})
    return Base(load, replace(build.cache, identity=identity))


def _present(artifact: Artifact, experiment: Experiment, store: Store) -> None:
    from fim_core.pipeline.report_background import write_report_page

    write_report_page(artifact, experiment, store)


evaluation_report = Stage(
    asset="evaluation_report",
    upstream=("raw_completions", "fim_prompts", "tokenized_dataset", "trained_checkpoint"),
    code=(__name__,),
    options=_options,
    outside=_champion_and_base,
    build=_build,
    trains=False,
    present=_present,
    tables=lambda folder: {"report": ReportFolder(folder).report},
)
