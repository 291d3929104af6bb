"""Preflight checks: packages, templates, tokenizers and models that an experiment needs on this machine.

The values of options are validated when the experiment file is read. These checks depend on files, installed packages
and the hub, and would otherwise fail hours later, in the stage that needs them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from pydantic import ValidationError

from fim_core.config import Experiment
from fim_core.config.model import ModelConfig
from fim_core.config.publishing import FolderTarget, MlflowTarget
from fim_core.device import device_type
from fim_core.errors import FimError
from fim_core.object_storage.filesystem import PACKAGES
from fim_core.object_storage.urls import is_url, scheme_of


def preflight(experiment: Experiment, *, trains: bool = True) -> None:
    """Check that this machine has everything that the experiment needs.

    Args:
        experiment: the options.
        trains: whether training is still to come. If not, the pretrained model is not required.

    Raises:
        FimError: a package, template, tokenizer or model that it names is missing or cannot be used.
    """
    _require_packages(experiment)
    _require_template(experiment.data.template)
    if trains:
        _require_tokenizer_and_model(experiment.model)
    _require_zero_options(experiment.deepspeed.get("zero_optimization", {}))
    _require_network(experiment)


def _require_packages(experiment: Experiment) -> None:
    trackers = {name: getattr(experiment, name) for name in ("tensorboard", "wandb", "trackio")}
    needed = {name: name for name, tracker in trackers.items() if tracker and tracker.enable}
    if experiment.evaluation.backend == "vllm":
        needed["evaluation.backend: vllm"] = "vllm"
    if experiment.model.type == "liger" and device_type() == "cuda":
        needed["model.type: liger"] = "liger_kernel"
    for target in experiment.publish:
        if isinstance(target, FolderTarget) and is_url(target.path):
            needed[f"publish: {target.path}"] = PACKAGES[scheme_of(target.path)]
        elif isinstance(target, MlflowTarget):
            needed["publish: mlflow"] = "mlflow"
    for option, package in needed.items():
        if find_spec(package) is None:
            raise FimError(
                f"`{option}` needs the package {package}, which is not installed. Install it (pip install {package}) "
                "or remove the option."
            )


def _require_template(name_or_path: str) -> None:
    from fim_core.prompt_format.template import load_template

    load_template(name_or_path)


def _require_tokenizer_and_model(model: ModelConfig) -> None:
    from fim_core.hub import require_place

    if model.name_or_path is not None:
        require_place(model.name_or_path, "model")
    if isinstance(model.tokenizer, str):
        require_place(model.tokenizer, "tokenizer")


def _require_zero_options(section: Mapping[str, Any]) -> None:
    if not section.keys() - {"stage"}:
        return
    # Without it DeepSpeed warns if there is no GPU.
    os.environ.setdefault("DS_ACCELERATOR", device_type())
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**section)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))}: "
            + ("no such option" if problem["type"] == "extra_forbidden" else problem["msg"])
            for problem in error.errors(include_url=False)
        ]
        raise FimError(f"deepspeed.zero_optimization cannot be used: {'; '.join(problems)}.") from error


def _require_network(experiment: Experiment) -> None:
    if experiment.model.config is None:
        if experiment.model.hf_config_kwargs:
            from fim_core.network_config import pretrained_config

            pretrained_config(experiment.model)
        return
    from fim_core.network_config import scratch_config

    config = scratch_config(experiment.model.config)
    limit, longest = getattr(config, "max_position_embeddings", None), experiment.data.max_length
    if limit is not None and longest > limit:
        raise FimError(
            f"data.max_length is {longest}, but the model supports at most {limit} tokens. Lower data.max_length or raise "
            "model.config.max_position_embeddings."
        )
