"""Metadata of `trained_checkpoint`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from fim_assets.metadata import plots
from fim_assets.metadata.tables import table
from fim_core.config import Experiment
from fim_core.folders.checkpoint import CheckpointFolder
from fim_core.store import Artifact, Store
from fim_core.training.history import curve, read_events


def describe(artifact: Artifact, experiment: Experiment, store: Store) -> dict[str, Any]:
    """Training figures, speed, curves, and how to load the checkpoint."""
    counts = artifact.counts
    events = read_events(CheckpointFolder(artifact.path).events)
    seconds = max(counts["seconds"], 1e-9)
    losses = {"training": curve(events, "step", "loss"), "held-out": curve(events, "eval", "loss")}
    return {
        **({"held_out_loss": round(counts["loss_after"], 4)} if counts["loss_after"] is not None else {}),
        "loss_curve": plots.curves(losses),
        "learning_rate_curve": plots.curves({"learning rate": curve(events, "step", "lr")}),
        "tokens_per_second": round(counts["tokens"] / seconds, 1),
        "speed_curve": plots.curves({"tokens per second": curve(events, "step", "tokens_per_second")}),
        "notices": "\n\n".join(counts["notices"]) or "none",
        "training": _figures_table(artifact),
        "load": dg.MetadataValue.md(how_to_load(artifact.path)),
    }


def _figures_table(artifact: Artifact) -> dg.MetadataValue:
    counts, trained_with = artifact.counts, artifact.manifest["config"]
    figures = {
        "optimizer steps": f"{counts['steps']:,} in {counts['epochs']} epochs",
        "rows per step": _mean(counts, "rows"),
        "trained tokens per step": _mean(counts, "trained_tokens"),
        "packs per step": f"{_mean(counts, 'packs')} ({counts['packing']})",
        "tokens per distinct token": f"{counts['tokens'] / max(counts['distinct_tokens'], 1):.2f}",
        "learning rate": f"{trained_with['optimizer']['lr']:g}",
        "gradient clipping": f"{trained_with['deepspeed']['gradient_clipping']}",
        "held-out loss before": _loss(counts["loss_before"]),
        "held-out loss after": _loss(counts["loss_after"]),
        "rows per second": f"{counts['rows'] / max(counts['seconds'], 1e-9):,.2f}",
        "seconds": f"{counts['seconds']:,.1f}",
        "ranks": f"{counts['world_size']}",
    }
    rows = [{"figure": name, "value": value} for name, value in figures.items()]
    return table({"figure": "string", "value": "string"}, rows)


def how_to_load(folder: Path) -> str:
    """Markdown that shows how to load the checkpoint in Python and from the command line."""
    return (
        "```python\nfrom transformers import (\n    AutoModelForCausalLM,\n    AutoTokenizer,\n)\n\n"
        f'path = "{folder}"\n'
        "model = AutoModelForCausalLM.from_pretrained(path)\n"
        "tokenizer = AutoTokenizer.from_pretrained(path)\n```\n"
        f'```bash\necho "select <fillMe> from orders" \\\n  | fim complete --checkpoint {folder}\n```'
    )


def _mean(counts: Mapping[str, Any], key: str) -> str:
    """A count per optimizer step."""
    return f"{counts[key] / max(counts['steps'], 1):,.2f}"


def _loss(loss: float | None) -> str:
    return "none" if loss is None else f"{loss:.4f}"
