"""Foreign files under every name that this package uses, and a comparison that detects changes to them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from fim_core.integrity import seal

ASSETS = (
    "raw_completions",
    "fim_prompts",
    "tokenized_dataset",
    "trained_checkpoint",
    "evaluation_report",
    "champion_model",
)
VERSION = "0123456789abcdef"
MONTH_SECONDS = 30 * 24 * 3600

_FOLDERS = [
    *("tmp", "tmp/notes", "tmp/removed-notes", "tmp/raw_completions-1", "tmp/new", ".tmp"),
    *("work", "work/uni/thesis", "work/trained_checkpoint/thesis", "work/trained_checkpoint/step-7", "work/step-7"),
    *("batch_cache", "batch_cache/engine/piston", "batch_cache/fim_prompts/old", "batch_cache/fim_prompts/old.arrow"),
    *("locks", "checks", "checks/raw_completions", "checks/uni", "state", "state/step-7", "logs", "packs", "trackers"),
    *("model", ".model", "failures", "step-7", "step-1000", "step-abc", ".step-7", ".step-abc", "step-7/deepspeed"),
    *("thesis/0123456789abcdef", "withdrawn", "by_experiment", "dataset", "tokenizer", "output", "output/dataset"),
    *(f"{asset}/{VERSION}" for asset in ASSETS),
    *(f"{asset}/by_experiment" for asset in ASSETS if asset != "evaluation_report"),
    *(f"{asset}/notes" for asset in ASSETS),
    "champion_model/withdrawn",
]
_FILES = [
    *(
        "current",
        "tmp/owner.json",
        "tmp/readme",
        "work/readme",
        "batch_cache/readme",
        "batch_cache/fim_prompts/readme.arrow",
    ),
    *("locks/notes", f"locks/{VERSION}", "checks/readme.json", f"checks/raw_completions/{VERSION}-notes.json"),
    *("manifest.json", "owner.json", "metrics.jsonl", "result.json", "progress", "lease", "rank-0.log", "launcher.log"),
    *("items.jsonl", "benchmark.json", "report.json", "report.html", "predictions.parquet", "exports.json", "fim.json"),
    *("model.safetensors", "config.json", "README.md", "demo.csv", "demo.parquet", "prompts.parquet", "state.json"),
    *("output.summary.json", "output.rejected.parquet", "bare.summary.json", "lone.rejected.parquet"),
    *("fim_prompts/current", "champion_model/withdrawn/notes", "trained_checkpoint/readme", ".step-8", "step-9"),
]


def fill(folder: Path, outside: Path) -> None:
    """Put foreign files, folders and links into `folder`; the links lead to files and folders made in `outside`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
        _write(folder / name / "thesis.txt", f"what is in {name}")
    for name in _FILES:
        _write(folder / name, f"{name} of somebody else")
    _write_links(folder, outside)
    long_ago = time.time() - 2 * MONTH_SECONDS
    for place in (folder, outside):
        for path in [*place.rglob("*"), place]:
            os.utime(path, (long_ago, long_ago), follow_symlinks=False)


def _write_links(folder: Path, outside: Path) -> None:
    """Links under names of the store, the last ones to folders that look like the store's."""
    outside.mkdir(parents=True)
    _write(outside / "elsewhere" / "photo.jpg", "a photo")
    _write(outside / "file.json", "[]")
    manifest = {
        "asset": "fim_prompts",
        "version": 16 * "f",
        "experiment": "demo",
        "inputs": {},
        "build": "a",
        "builds": {},
        "serial": 1,
        "counts": {},
        "config": {},
        "files": {},
        "created": "2020-01-01T00:00:00+00:00",
    }
    for place, version in (("version", 16 * "f"), (f"versions/{16 * 'e'}", 16 * "e")):
        content = manifest | {"version": version}
        _write(outside / place / "manifest.json", json.dumps(seal(content)))
    draft = f"fim_prompts-{16 * 'f'}-1-{8 * 'f'}"
    for name, target in {
        f"tmp/{draft}": "elsewhere",
        f"tmp/removed-{16 * 'f'}": "elsewhere",
        "tmp/link": "elsewhere",
        f"work/trained_checkpoint/{16 * 'f'}": "elsewhere",
        "work/fim_prompts": "elsewhere",
        f"batch_cache/fim_prompts/{64 * 'f'}.arrow": "file.json",
        "batch_cache/tokenized_dataset": "elsewhere",
        f"fim_prompts/{16 * 'f'}": "version",
        "raw_completions/current": "elsewhere",
        "fim_prompts/by_experiment/demo": "version",
        "raw_completions/by_experiment/demo": "version",
        "checks/fim_prompts": "elsewhere",
        f"locks/raw_completions-{VERSION}": "nothing",
        "champion_model/withdrawn/demo.json": "file.json",
        "step-70": "elsewhere",
        "step-71": "nothing",
        ".step-72": "elsewhere",
        "state/step-70": "elsewhere",
        "linked": "elsewhere",
        "linked.summary.json": "file.json",
    }.items():
        (folder / name).symlink_to(outside / target)
    for child in sorted((folder / "evaluation_report").rglob("*"), reverse=True):
        child.rmdir() if child.is_dir() else child.unlink()
    (folder / "evaluation_report").rmdir()
    (folder / "evaluation_report").symlink_to(outside / "versions")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def snapshot(*folders: Path) -> dict[str, str | bytes]:
    """Every path below the folders: the target of a link, the bytes of a file, "folder"."""
    found: dict[str, str | bytes] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_symlink():
                found[str(path)] = f"link to {os.readlink(path)}"
            elif path.is_dir():
                found[str(path)] = "folder"
            else:
                found[str(path)] = path.read_bytes()
    return found


def changed(before: dict[str, str | bytes], *folders: Path) -> list[str]:
    """Paths of a snapshot that are missing or changed; new paths are ignored."""
    now = snapshot(*folders)
    return sorted(path for path, content in before.items() if now.get(path) != content)
