"""The stages that judge: checkpoint → report → champion."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.hub import require_place
from fim_core.integrity import read_sealed, write_sealed
from fim_core.pipeline.code import code_version
from fim_core.pipeline.data import RAW_ROWS
from fim_core.pipeline.stage import Build, Stage
from fim_core.pipeline.training import pretrained_digest
from fim_core.store import Artifact, Store, champion_folder, champion_weights, digest

if TYPE_CHECKING:
    from fim_core.evaluation.base import Base
    from fim_core.evaluation.predictors import Predictor

DECISION = "decision.json"

_PREDICTION_CODE = (
    "evaluation/base.py",
    "evaluation/generate.py",
    "evaluation/predictors.py",
    "evaluation/prefix_cache.py",
    "evaluation/shared_decoding.py",
    "modeling",
    "packing",
    "tokens.py",
    "families.py",
)
"""Code that decides what the base model predicts."""

_WITHDRAWN = "withdrawn"


def _report_options(experiment: Experiment) -> dict[str, Any]:
    return {
        "evaluation": experiment.evaluation.model_dump(mode="json"),
        "show_samples": experiment.metadata.show_samples,
        "seed": experiment.seed,
    }


def _champion_input(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    champion = champion_before(store, experiment.name, inputs["trained_checkpoint"].version)
    return {"champion": champion.version if champion else "none"}


def _champion_and_base(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    # A report without the base model must be made again once its weights are back.
    trained_from = inputs["trained_checkpoint"].manifest["inputs"].get("pretrained")
    place = experiment.model.name_or_path
    is_gone = place is not None and trained_from != place and not Path(place).is_dir()
    return _champion_input(experiment, store, inputs) | ({"base": "missing"} if is_gone else {})


def _build_report(build: Build) -> dict[str, Any]:
    from fim_core.evaluation.run import evaluate

    inputs = build.inputs
    champion = champion_before(build.store, build.experiment.name, inputs["trained_checkpoint"].version)
    return evaluate(
        build.experiment,
        checkpoint=inputs["trained_checkpoint"].path,
        raw=inputs["raw_completions"].path / RAW_ROWS,
        prompts=inputs["fim_prompts"].path,
        dataset=inputs["tokenized_dataset"].path,
        output=build.output,
        champion=champion_weights(champion) if champion else None,
        base=_base(build),
        on_event=build.on_event,
    )


def _base(build: Build) -> Base:
    """The model before training, whose predictions are kept from one training to the next."""
    from fim_core.evaluation.base import Base, load_base

    experiment, checkpoint = build.experiment, build.inputs["trained_checkpoint"]
    trained_from = checkpoint.manifest["inputs"].get("pretrained")

    def load() -> Predictor:
        if (place := experiment.model.name_or_path) is not None:
            require_place(place, "model")
            if pretrained_digest(place) != trained_from:
                raise FimError(
                    f"The weights in {place} have changed since the checkpoint was trained from them. Train again, or put "
                    "them back and make the report again (with force)."
                )
        return load_base(experiment.model, checkpoint.path, seed=experiment.seed)

    model = experiment.model
    weights = {"config": model.config, "dtype": model.dtype} if model.config is not None else trained_from
    # A pretrained model draws by the seed as well: the embeddings of tokens that are new to it.
    options = {"hf_config_kwargs": model.hf_config_kwargs, "seed": experiment.seed}
    identity = digest({"base": weights, "options": options, "code": code_version(*_PREDICTION_CODE)})
    return Base(load, replace(build.parts, identity=identity))


evaluation_report = Stage(
    asset="evaluation_report",
    upstream=("raw_completions", "fim_prompts", "tokenized_dataset", "trained_checkpoint"),
    code=("evaluation", "tokenization/encoder.py", "tokens.py", "families.py"),
    options=_report_options,
    outside=_champion_and_base,
    build=_build_report,
    trains=False,
)


def _champion_inputs(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    candidate = inputs["trained_checkpoint"].version
    taken_back = {_WITHDRAWN: "yes"} if candidate in withdrawn(store, experiment.name) else {}
    return _champion_input(experiment, store, inputs) | taken_back


def _build_champion(build: Build) -> dict[str, Any]:
    from fim_core.evaluation.gate import decide, refuse

    candidate, report = build.inputs["trained_checkpoint"], build.inputs["evaluation_report"]
    if report.manifest["inputs"]["trained_checkpoint"] != candidate.version:
        raise FimError(
            f"The evaluation report is about checkpoint {report.manifest['inputs']['trained_checkpoint']}, "
            f"not about the current one, {candidate.version}. Materialize evaluation_report first."
        )
    previous = champion_before(build.store, build.experiment.name, candidate.version)
    decision = decide(report.path, build.experiment.gate, has_champion=previous is not None)
    if candidate.version in withdrawn(build.store, build.experiment.name):
        decision = refuse(
            decision,
            "This checkpoint was champion and was rolled back by hand; only rollback --version brings it back.",
        )
    content = asdict(decision) | {
        "candidate": candidate.version,
        "champion_before": previous.version if previous else None,
    }
    (build.output / DECISION).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if decision.promote:
        weights = build.output / champion_folder(build.experiment.name)
        _link_tree(candidate.path, weights)
        _write_metrics(weights, report.path)
    return {"promote": decision.promote, "candidate": candidate.version}


champion_model = Stage(
    asset="champion_model",
    upstream=("trained_checkpoint", "evaluation_report"),
    code=("evaluation/gate.py", "model_card.py"),
    options=lambda experiment: {"gate": experiment.gate.model_dump(mode="json")},
    outside=_champion_inputs,
    build=_build_champion,
    trains=False,
    adopt=lambda artifact: artifact.counts["promote"],
)


def champion(store: Store, experiment: str) -> Artifact | None:
    """The model that an experiment has promoted, or None; see `champion_weights`.

    Raises:
        DamagedFile: its manifest is damaged.
    """
    return store.find_current("champion_model", experiment)


def decisions(store: Store, experiment: str) -> list[Artifact]:
    """Every decision about a candidate of an experiment, oldest first; `counts["promote"]` says which way it went."""
    return [a for a in store.versions("champion_model") if a.manifest["experiment"] == experiment]


def promoted(store: Store, experiment: str) -> list[Artifact]:
    """Every model that an experiment has promoted, oldest first, the one that serves included."""
    return [decided for decided in decisions(store, experiment) if decided.counts["promote"]]


def champion_before(store: Store, experiment: str, candidate: str) -> Artifact | None:
    """The champion that a candidate has to beat; once it is champion itself, the one that it replaced."""
    reigning = champion(store, experiment)
    if reigning is not None and reigning.counts["candidate"] == candidate:
        return store.find("champion_model", reigning.manifest["inputs"]["champion"])
    return reigning


def roll_back(store: Store, experiment: str, version: str | None = None) -> Artifact:
    """Make an earlier champion the champion again: the one before, or the version that is named.

    The checkpoint that it replaces does not become champion by itself again, whatever the gate finds: someone had a
    reason, and the next scheduled run must not undo it.

    Raises:
        FimError: there is none to go back to.
    """
    reigning = champion(store, experiment)
    if reigning is None:
        raise FimError(f"Experiment {experiment} has no champion to roll back.")
    target = store.find("champion_model", version or reigning.manifest["inputs"]["champion"])
    if target is None or not target.counts["promote"]:
        known = [a.version for a in promoted(store, experiment) if a != reigning]
        raise FimError(f"There is no such earlier champion. Known: {', '.join(known) or 'none'}.")
    taken_back = withdrawn(store, experiment) | {reigning.counts["candidate"]}
    _write_withdrawn(store, experiment, taken_back - {target.counts["candidate"]})
    store.use(target, experiment)
    return target


def withdrawn(store: Store, experiment: str) -> set[str]:
    """The checkpoints of an experiment that were rolled back.

    Raises:
        DamagedFile: their list is damaged.
    """
    try:
        return set(read_sealed(withdrawn_file(store, experiment))["checkpoints"])
    except FileNotFoundError:
        return set()


def _write_withdrawn(store: Store, experiment: str, checkpoints: set[str]) -> None:
    store.folder("champion_model", _WITHDRAWN)
    write_sealed(withdrawn_file(store, experiment), {"checkpoints": sorted(checkpoints)})


def withdrawn_file(store: Store, experiment: str) -> Path:
    """Where the checkpoints of an experiment that were rolled back are listed."""
    return store.root / "champion_model" / _WITHDRAWN / f"{experiment}.json"


def _write_metrics(weights: Path, report: Path) -> None:
    """Add the figures of the report to the champion's model card, which is a file that the checkpoint has as well."""
    from fim_core.evaluation.report import read_report
    from fim_core.model_card import CARD, with_metrics

    card = weights / CARD
    text = with_metrics(card.read_text(encoding="utf-8"), read_report(report))
    card.unlink()  # the name alone: written through, the checkpoint's file would change too
    card.write_text(text, encoding="utf-8")


def _link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links, so that the champion stays when old checkpoints are collected."""

    def link(src: str, dst: str) -> None:
        try:
            os.link(src, dst)
        except OSError:
            shutil.copy2(src, dst)

    shutil.copytree(source, target, copy_function=link)
