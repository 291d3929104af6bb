"""What the UI shows of a finished asset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from fim_assets import plots
from fim_core.config import Experiment
from fim_core.pipeline import StageResult
from fim_core.store import Artifact

Metadata = dict[str, Any]

ROW_COUNT = "dagster/row_count"
COLUMN_SCHEMA = "dagster/column_schema"
COLUMN_LINEAGE = "dagster/column_lineage"


def metadata_of(result: StageResult, experiment: Experiment) -> Metadata:
    """Everything that is known about a finished stage, for people."""
    artifact, manifest = result.artifact, result.artifact.manifest
    shared: Metadata = {
        "version": artifact.version,
        "outcome": outcome(result),
        "path": dg.MetadataValue.path(str(artifact.path)),
        "megabytes": round(manifest["bytes"] / 1e6, 2),
        "experiment": experiment.name,
        "inputs": dg.MetadataValue.json(manifest["inputs"]),
        "config_digest": manifest["config_digest"],
        "code_version": manifest["code_version"],
        "commit": manifest["commit"] or "not in a git checkout",
    }
    return shared | _OF_ASSET[artifact.asset](artifact, experiment)


def outcome(result: StageResult) -> str:
    """Whether there was anything to do."""
    version = result.artifact.version
    return f"reused version {version}" if result.reused else f"made version {version} in {result.seconds:.1f} s"


def _raw_completions(artifact: Artifact, experiment: Experiment) -> Metadata:
    counts = artifact.counts
    return {
        ROW_COUNT: counts["rows"],
        COLUMN_SCHEMA: _parquet_schema(artifact.path / "raw_completions.parquet"),
        "rows_by_source": _count_table(counts["by_source"], "source"),
        "rows_by_source_type": _count_table(counts["by_source_type"], "source type"),
        "rows_by_type": _count_table(counts["by_type"], "type"),
    }


def _fim_prompts(artifact: Artifact, experiment: Experiment) -> Metadata:
    counts = artifact.counts
    lineage = {
        "prompt": ["input"],
        "prefix": ["input"],
        "suffix": ["input"],
        "response": ["output"],
        "row_id": ["row_id"],
        "type": ["type"],
        "split": ["input", "output", "held_out"],
    }
    return {
        ROW_COUNT: counts["rows_kept"],
        COLUMN_SCHEMA: _parquet_schema(artifact.path / "prompts.parquet"),
        COLUMN_LINEAGE: _lineage("raw_completions", lineage),
        "rows_in": counts["rows_in"],
        "rendered_now": counts["rendered"],
        "repaired": counts["repaired"],
        "train_rows": counts["train"],
        "eval_rows": counts["eval"],
        "rejected": _count_table(counts["rejected"], "reason"),
        "markup": counts["notice"],
    }


def _tokenized_dataset(artifact: Artifact, experiment: Experiment) -> Metadata:
    counts = artifact.counts
    packing = counts["packing"]
    shown: Metadata = {
        ROW_COUNT: counts["rows_kept"],
        COLUMN_LINEAGE: _lineage(
            "fim_prompts",
            {"input_ids": ["prompt", "response"], "labels": ["prompt", "response"], "prompt_length": ["prompt"]},
        ),
        "encoded_now": counts["encoded"],
        "too_long": counts["too_long"],
        "tokens": counts["tokens"],
        "trained_tokens": counts["trained_tokens"],
        "packing": packing["strategy"],
        "packs": packing["packs"],
        "pack_fill": round(packing["fill"], 4),
        "rows_per_pack": round(packing["rows_per_pack"], 2),
        "tokens_per_distinct_token": round(packing["tokens"] / max(packing["distinct_tokens"], 1), 2),
    }
    return shown


def _trained_checkpoint(artifact: Artifact, experiment: Experiment) -> Metadata:
    counts = artifact.counts
    steps = list(_events(artifact.path / "metrics.jsonl", "step"))
    evals = list(_events(artifact.path / "metrics.jsonl", "eval"))
    return {
        "steps": counts["steps"],
        "loss_before": counts["loss_before"],
        "loss_after": counts["loss_after"],
        "rows_per_second": round(counts["rows"] / max(counts["seconds"], 1e-9), 2),
        "tokens_per_second": round(counts["tokens"] / max(counts["seconds"], 1e-9), 1),
        "curves": plots.curves(
            {
                "loss": {"training": _points(steps, "loss"), "held-out": _points(evals, "loss")},
                "learning rate": {"lr": _points(steps, "lr")},
                "rows a second": {"rows": _points(steps, "rows_per_second")},
            }
        ),
        "load": dg.MetadataValue.md(
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{artifact.path}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{artifact.path}")\n```'
        ),
    }


def _evaluation_report(artifact: Artifact, experiment: Experiment) -> Metadata:
    counts = artifact.counts
    figures = {name: figure for name, figure in counts["metrics"].items() if figure["value"] is not None}
    shares = {
        name: (figure["value"], figure["low"], figure["high"])
        for name, figure in figures.items()
        if figure["low"] >= 0 and figure["high"] <= 1
    }
    compared = counts["baselines"] | ({"champion": counts["champion"]} if counts["champion"] else {})
    return {
        "rows": counts["rows"],
        "groups": counts["groups"],
        **{name: figure["value"] for name, figure in figures.items()},
        "intervals": plots.intervals(shares, title="figures with their confidence intervals"),
        "baselines": dg.MetadataValue.json(compared),
        "report": dg.MetadataValue.url((artifact.path / "report.html").as_uri()),
    }


def _champion_model(artifact: Artifact, experiment: Experiment) -> Metadata:
    decision = json.loads((artifact.path / "decision.json").read_text(encoding="utf-8"))
    return {
        "promoted": decision["promote"],
        "candidate": decision["candidate"],
        "champion_before": decision["champion_before"] or "none",
        "reasons": dg.MetadataValue.md("\n".join(f"- {result['reason']}" for result in decision["results"])),
    }


_OF_ASSET: Mapping[str, Callable[[Artifact, Experiment], Metadata]] = {
    "raw_completions": _raw_completions,
    "fim_prompts": _fim_prompts,
    "tokenized_dataset": _tokenized_dataset,
    "trained_checkpoint": _trained_checkpoint,
    "evaluation_report": _evaluation_report,
    "champion_model": _champion_model,
}


def _parquet_schema(path: Path) -> dg.TableSchema:
    import pyarrow.parquet as pq

    fields = pq.read_schema(path)
    return dg.TableSchema(columns=[dg.TableColumn(field.name, str(field.type)) for field in fields])


def _count_table(counts: Mapping[str, int], name: str) -> dg.MetadataValue:
    records = [dg.TableRecord({name: key or "(none)", "rows": rows}) for key, rows in counts.items()]
    schema = dg.TableSchema(columns=[dg.TableColumn(name, "string"), dg.TableColumn("rows", "int")])
    return dg.MetadataValue.table(records, schema=schema)


def _lineage(asset: str, columns: Mapping[str, Sequence[str]]) -> dg.TableColumnLineage:
    key = dg.AssetKey(asset)
    return dg.TableColumnLineage(
        {
            name: [dg.TableColumnDep(asset_key=key, column_name=source) for source in sources]
            for name, sources in columns.items()
        }
    )


def _events(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            if event["event"] == kind:
                yield event


def _points(events: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(event["step"], event[key]) for event in events if isinstance(event.get(key), int | float)]
