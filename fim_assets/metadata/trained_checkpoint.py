"""Metadata of `trained_checkpoint`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from fim_assets.metadata import plots
from fim_core.config import Experiment
from fim_core.folders.checkpoint import CheckpointFolder
from fim_core.store import Artifact, Store
from fim_core.training.log_tail import event_of


def describe(artifact: Artifact, experiment: Experiment, store: Store) -> dict[str, Any]:
    """Training figures, speed, curves, and how to load the checkpoint."""
    counts = artifact.counts
    events = list(_events(CheckpointFolder(artifact.path).events))
    steps = [event for event in events if event["event"] == "step"]
    evals = [event for event in events if event["event"] == "eval"]
    trained_with = artifact.manifest["config"]
    seconds = max(counts["seconds"], 1e-9)
    return {
        "steps": counts["steps"],
        "packing": counts["packing"],
        "epochs": counts["epochs"],
        "rows_per_step": _mean(counts, "rows"),
        "trained_tokens_per_step": _mean(counts, "trained_tokens"),
        "packs_per_step": _mean(counts, "packs"),
        "tokens_per_distinct_token": round(counts["tokens"] / max(counts["distinct_tokens"], 1), 2),
        "learning_rate": trained_with["optimizer"]["lr"],
        "gradient_clipping": trained_with["deepspeed"]["gradient_clipping"],
        "notices": "\n\n".join(counts["notices"]) or "none",
        "loss_before": _rounded(counts["loss_before"]),
        "loss_after": _rounded(counts["loss_after"]),
        "rows_per_second": round(counts["rows"] / seconds, 2),
        "tokens_per_second": round(counts["tokens"] / seconds, 1),
        "training_seconds": round(counts["seconds"], 1),
        "ranks": counts["world_size"],
        "curves": plots.curves(
            {
                "loss": {"training": _points(steps, "loss"), "held-out": _points(evals, "loss")},
                "learning rate": {"learning rate": _points(steps, "lr")},
                "tokens per second": {"tokens": _points(steps, "tokens_per_second")},
            }
        ),
        "load": dg.MetadataValue.md(how_to_load(artifact.path)),
    }


def how_to_load(folder: Path) -> str:
    """Markdown that shows how to load the checkpoint in Python and from the command line."""
    return (
        "```python\nfrom transformers import (\n    AutoModelForCausalLM,\n    AutoTokenizer,\n)\n\n"
        f'path = "{folder}"\n'
        "model = AutoModelForCausalLM.from_pretrained(path)\n"
        "tokenizer = AutoTokenizer.from_pretrained(path)\n```\n"
        f'```bash\necho "select <fillMe> from orders" \\\n  | fim complete --checkpoint {folder}\n```'
    )


def _events(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        yield from (event for line in lines if (event := event_of(line)) is not None)


def _mean(counts: Mapping[str, Any], key: str) -> float:
    """A count per optimizer step."""
    return round(counts[key] / max(counts["steps"], 1), 2)


def _rounded(loss: float | None) -> float | None:
    return None if loss is None else round(loss, 4)


def _points(events: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(event["step"], event[key]) for event in events if isinstance(event.get(key), int | float)]
