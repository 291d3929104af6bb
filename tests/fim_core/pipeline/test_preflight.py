"""Preflight: missing packages, templates, tokenizers and models are reported before any work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model
from tiny_pipeline import TINY, write_experiment

from fim_core.config import load_experiment
from fim_core.errors import FimError
from fim_core.hub import require_place
from fim_core.pipeline import STAGES, run, run_stage, stage_of
from fim_core.pipeline.preflight import preflight
from fim_core.store import Store

SCRATCH: dict[str, Any] = TINY["model"]["config"]
TRAINED = {"vocab_size": 700}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"evaluation": {"backend": "vllm"}}, "evaluation.backend: vllm.*pip install vllm"),
        ({"wandb": {}}, "pip install wandb"),
        ({"tensorboard": {}}, "pip install tensorboard"),
        ({"data": {**TINY["data"], "template": "nosuch"}}, "There is no template nosuch"),
        ({"model": {"name_or_path": "./nosuch"}}, "There is no model folder ./nosuch"),
        ({"model": {"config": SCRATCH, "tokenizer": "/no/such"}}, "There is no tokenizer folder /no/such"),
        ({"model": {"config": {**SCRATCH, "hiden_size": 1}, "tokenizer": TRAINED}}, "no such option"),
        (
            {"deepspeed": {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}}},
            "deepspeed.zero_optimization cannot be used: offload_optimizer.devise: no such option",
        ),
        ({"model": {"config": {"model_type": "nosuch"}, "tokenizer": TRAINED}}, "'nosuch' is unknown"),
        (
            {"model": {"config": {**SCRATCH, "max_position_embeddings": 1024}, "tokenizer": TRAINED}},
            "data.max_length is 2048, but the model supports at most 1024",
        ),
    ],
)
def test_missing_things_are_reported_before_any_stage_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str
) -> None:
    for package in ("vllm", "wandb", "tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)
    experiment = load_experiment(write_experiment(tmp_path, **changes))
    store = Store(experiment.storage)
    with pytest.raises(FimError, match=named):
        run(experiment)
    with pytest.raises(FimError, match=named):
        run_stage(STAGES[0], experiment, store, upstream_of=stage_of)
    assert all(store.versions(stage.asset) == [] for stage in STAGES)


def test_overrides_of_a_pretrained_model_are_checked(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = {"name_or_path": str(tmp_path / "base"), "hf_config_kwargs": {"atention_dropout": 0.1}}
    with pytest.raises(FimError, match=r"model\.hf_config_kwargs\.atention_dropout: .* no such option"):
        preflight(load_experiment(write_experiment(tmp_path, model=model)))


def test_a_template_with_a_mistake_is_found(tmp_path: Path) -> None:
    template = tmp_path / "own.tmpl"
    template.write_text('{{define "assistant"}}{{.NOPE}}{{end}}')
    path = write_experiment(tmp_path, data={**TINY["data"], "template": str(template)})
    with pytest.raises(FimError, match=r"own\.tmpl, line 1: there is no field \.NOPE"):
        preflight(load_experiment(path))


def test_liger_needs_its_package_where_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    experiment = load_experiment(write_experiment(tmp_path, model={**TINY["model"], "type": "liger"}))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    preflight(experiment)
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    with pytest.raises(FimError, match="pip install liger_kernel"):
        preflight(experiment)


def test_trackers_that_are_off_need_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    preflight(load_experiment(write_experiment(tmp_path, wandb={"enable": False})))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("a/b/c", "neither a folder nor a hub id"),
        ("nobody/has-this", "not in this machine's cache, and HF_HUB_OFFLINE is set"),
    ],
)
def test_an_unavailable_hub_id_is_reported_in_one_sentence(tmp_path: Path, place: str, said: str) -> None:
    with pytest.raises(FimError, match=said) as error:
        require_place(place, "tokenizer")
    assert "\n" not in str(error.value)


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The name is one that no resolver knows (RFC 6761)."""
    import huggingface_hub.file_download
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_url", lambda place, file: f"https://hub.invalid/{place}/resolve/main/{file}"
    )
    with pytest.raises(FimError, match="the hub does not provide it: "):
        require_place("nobody/has-this", "model")
    assert "Retry" not in caplog.text


def test_a_local_folder_is_accepted(tmp_path: Path) -> None:
    require_place(str(tmp_path), "model")
