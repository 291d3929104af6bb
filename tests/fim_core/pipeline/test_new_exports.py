"""A new export: only its rows are prepared, and the result equals that of preparing everything from scratch."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fim_core.config import Experiment
from fim_core.demo.export import write_export
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.errors import FimError
from fim_core.pipeline import StageResult, run
from fim_core.store import Artifact, Store

ASSETS = ("raw_completions", "fim_prompts", "tokenized_dataset")


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    folder = tmp_path / "exports"
    folder.mkdir()
    write_export(folder / "july.csv", rows=150, seed=1)
    train_tokenizer([(folder / "july.csv").read_text()], 700).save_pretrained(tmp_path / "tokenizer")
    return folder


DIES = """
import os, signal, sys
from pathlib import Path
from fim_core import atomic as files
from fim_core.config import Experiment
from fim_core.pipeline import run

replace, left = os.replace, int(sys.argv[2])

def replace_or_die(scratch, path):
    global left
    left -= str(path).endswith(".arrow")
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(scratch, path)

files.os.replace = replace_or_die
run(Experiment.model_validate_json(sys.argv[1]), until="tokenized_dataset")
"""
"""Prepares an experiment (JSON), and is killed where the n-th part would take its place."""


def prepare(exports: Path, store: str, *, force: bool = False, **data: Any) -> dict[str, StageResult]:
    return run(experiment_of(exports, store, **data), until="tokenized_dataset", force=force)


def experiment_of(exports: Path, store: str, **data: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "parts",
            "storage": str(exports.parent / store),
            "model": {
                "config": {"model_type": "qwen3", "hidden_size": 32},
                "tokenizer": str(exports.parent / "tokenizer"),
            },
            "data": {"sources": [{"name_or_path": str(exports)}], "eval_fraction": 0.3, "max_length": 600, **data},
        }
    )


def content(artifact: Artifact) -> dict[str, bytes]:
    files = (path for path in artifact.path.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(artifact.path)): path.read_bytes() for path in files}


def worked_on(results: dict[str, StageResult]) -> tuple[int, int]:
    prompts, tokens = (results[asset].artifact.counts for asset in ASSETS[1:])
    return prompts["rendered"], tokens["encoded"]


def counts_of(results: dict[str, StageResult], asset: str) -> dict[str, Any]:
    work = {"rendered", "encoded", "tokenizer_tokens"}
    return {name: count for name, count in results[asset].artifact.counts.items() if name not in work}


def test_only_the_new_rows_are_prepared(exports: Path) -> None:
    first = prepare(exports, "step_by_step")
    kept = first["fim_prompts"].artifact.counts["rows_kept"]
    assert worked_on(first) == (150, kept)
    # It stands before the other export, which so gets other places in every table.
    write_export(exports / "august.csv", rows=110, seed=2)
    second = prepare(exports, "step_by_step")
    kept_now = second["fim_prompts"].artifact.counts["rows_kept"]
    assert worked_on(second) == (110, kept_now - kept)

    from_scratch = prepare(exports, "at_once")
    assert worked_on(from_scratch) == (260, kept_now)
    for asset in ASSETS:
        assert second[asset].artifact.version == from_scratch[asset].artifact.version
        assert content(second[asset].artifact) == content(from_scratch[asset].artifact)
        assert counts_of(second, asset) == counts_of(from_scratch, asset)


def test_an_export_without_usable_rows_is_reported_and_changes_nothing(exports: Path) -> None:
    good = prepare(exports, "store")
    (exports / "july.csv").write_text("INPUT,OUTPUT\n{},x\n,y\n")
    with pytest.raises(FimError, match=r"did not pass its checks: .*prompts_not_empty"):
        prepare(exports, "store")
    store = Store(exports.parent / "store")
    assert store.current("tokenized_dataset", "parts").version == good["tokenized_dataset"].artifact.version
    assert all(store.find(asset, good[asset].artifact.version) for asset in ASSETS)


def test_a_change_of_options_prepares_the_rows_again(exports: Path) -> None:
    prepare(exports, "store")
    template = exports.parent / "own.tmpl"
    template.write_text(
        '{{define "assistant"}}-- SQL\n<|fim_prefix|>{{.PREFIX}}<|fim_suffix|>{{.SUFFIX}}<|fim_middle|>{{end}}'
    )
    rendered, encoded = worked_on(prepare(exports, "store", template=str(template)))
    assert rendered == 150
    assert encoded > 0
    assert worked_on(prepare(exports, "store", max_length=500))[1] > 0
    assert worked_on(prepare(exports, "store", force=True))[0] == 150


def test_cached_batches_may_be_lost_or_damaged_at_any_time(exports: Path) -> None:
    first = prepare(exports, "store")
    store = Store(exports.parent / "store")
    for number, part in enumerate(sorted((store.root / "batch_cache").rglob("*.arrow"))):
        if number % 2:
            part.unlink()
        else:
            part.write_bytes(part.read_bytes()[:-20])
    write_export(exports / "august.csv", rows=110, seed=2)
    second = prepare(exports, "store")
    assert worked_on(second)[0] == 260
    assert worked_on(first)[0] == 150
    from_scratch = prepare(exports, "at_once")
    assert content(second["tokenized_dataset"].artifact) == content(from_scratch["tokenized_dataset"].artifact)


def test_a_kill_midway_costs_only_what_was_not_finished(exports: Path) -> None:
    for name, seed in (("august.csv", 2), ("june.csv", 3)):
        write_export(exports / name, rows=100, seed=seed)
    experiment = experiment_of(exports, "killed")
    # Each attempt keeps the cached batches before the one at which it dies: one export's prompts, then all of them and one
    # export's tokens.
    for part, kept in ((2, 1), (4, 4)):
        died = subprocess.run([sys.executable, "-c", DIES, experiment.model_dump_json(), str(part)])
        assert died.returncode == -signal.SIGKILL
        assert len(list((experiment.storage / "batch_cache").rglob("[!.]*.arrow"))) == kept
    last = prepare(exports, "killed")
    from_scratch = prepare(exports, "undisturbed")
    assert worked_on(last)[1] < worked_on(from_scratch)[1]
    for asset in ASSETS:
        assert content(last[asset].artifact) == content(from_scratch[asset].artifact)
