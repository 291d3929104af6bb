"""Model cards: the README.md of a checkpoint, with front matter for model hubs.

The format is that of huggingface_hub (https://huggingface.co/docs/hub/model-cards). A card is shared with the weights, so
it contains no path of the machine that trained the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load, try_to_load_from_cache

from fim_core.config import Experiment
from fim_core.config.data import DataConfig
from fim_core.evaluation.predictor_names import BASE
from fim_core.folders.checkpoint import CheckpointFolder
from fim_core.pipeline.accounting import RowAccount
from fim_core.prompt_format.recipe import RECIPE, Recipe
from fim_core.store import digest
from fim_core.training.job import TrainResult

_TRAINED = {"adapters": "LoRA adapters", "pretrained": "all weights", "scratch": "all weights, from scratch"}

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_CACHED = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")


@dataclass(frozen=True)
class BaseModel:
    """The model that training started from, as named in a card.

    Attributes:
        name: display name.
        hub_id: id on the hub, if known.
        license: licence fields of its card: `license`, `license_name`, `license_link`.
    """

    name: str
    hub_id: str | None
    license: Mapping[str, Any]


def base_model(place: str) -> BaseModel:
    """The base model at `model.name_or_path`.

    The hub id of a folder is derived from its path in the hub's cache, else `_name_or_path` of its config.json, else
    `base_model` of its model card; each only if it has the form of a hub id.
    """
    folder = Path(place).expanduser()
    if not folder.is_dir():
        cached = try_to_load_from_cache(place, CheckpointFolder(folder).card.name)
        front = _front_matter(Path(cached)) if isinstance(cached, str) else {}
        return BaseModel(place, place, _license(front))
    front = _front_matter(CheckpointFolder(folder).card)
    cached_at = _CACHED.search(f"{folder.absolute().as_posix()}/")
    candidates = (
        "/".join(cached_at.groups()) if cached_at else None,
        _json(folder / "config.json").get("_name_or_path"),
        front.get("base_model"),
    )
    hub_id = next((text for text in candidates if isinstance(text, str) and _HUB_ID.fullmatch(text)), None)
    return BaseModel(hub_id or folder.absolute().name, hub_id, _license(front))


def model_card(
    experiment: Experiment,
    result: TrainResult,
    recipe: Recipe,
    *,
    rows: RowAccount,
    provenance: Mapping[str, str],
) -> str:
    """The card of a trained checkpoint.

    Args:
        experiment: the trained experiment.
        result: result of training.
        recipe: recipe of the prompts.
        rows: row counts of the exports.
        provenance: version of each input, by asset.
    """
    place = experiment.model.name_or_path
    base = base_model(place) if place else None
    front = ModelCardData(
        base_model=base.hub_id if base else None,
        language="code",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["fill-in-the-middle", "sql"],
        datasets=_hub_datasets(experiment.data) or None,
        **(base.license if base else {}),
    )
    sections = {
        "": f"Completes SQL at the cursor, given the text before and after it and the editor's context: history, table "
        f"definitions, the open file. {_origin(base)}",
        "Data": _table(_data(rows)),
        "Training": _table(_training(experiment, result)),
        "Load": _LOAD,
        "Complete": _complete(experiment, recipe),
        "Limits": _LIMITS,
        "Made from": _table(
            {"experiment": experiment.name, "experiment digest": digest(experiment.model_dump(mode="json"))}
            | dict(provenance)
        ),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items())
    return f"---\n{front.to_yaml()}\n---\n\n# {experiment.name}\n\n{body}\n"


def with_metrics(card: str, report: Mapping[str, Any]) -> str:
    """Add the metrics of an evaluation to a card: to the front matter (`model-index`), and as a table with intervals.

    Args:
        card: text that `model_card` returned.
        report: content of report.json.
    """
    content = ModelCard(card)
    name, percent = report["experiment"], f"{report['options']['confidence']:.0%}"
    figures = {
        report["definitions"][metric]["title"]: (metric, figure, report["definitions"][metric]["unit"])
        for metric, figure in report["metrics"].items()
        if figure["value"] is not None
    }
    data: Any = content.data
    data.model_name = name
    data.eval_results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name=f"Held-out rows of {name}",
            metric_type=metric,
            metric_name=f"{title} ({percent} interval {_number(figure['low'])} to {_number(figure['high'])})",
            metric_value=round(figure["value"], 4),
        )
        for title, (metric, figure, _) in figures.items()
    ]
    of_base = report["others"].get(BASE, {}).get("metrics", {})
    lines = [
        f"| {title} | {unit} | {_number(figure['value'])} | {_number(figure['low'])} to {_number(figure['high'])} "
        f"| {_number(of_base.get(metric, {}).get('value'))} | {figure['n']:,} |"
        for title, (metric, figure, unit) in figures.items()
    ]
    counts = report["counts"]
    about = (
        f"Greedy completions of {counts['evaluated']:,} held-out rows in {counts['groups']:,} groups, which were not "
        f"trained on. Intervals: {percent}, bootstrap over groups."
    )
    head = [f"| Metric | Unit | Value | {percent} interval | Before training | Rows |", "|---|---|---|---|---|---|"]
    table = "\n".join([*head, *lines])
    text = content.text.rstrip()
    return f"---\n{data.to_yaml()}\n---\n\n{text.lstrip()}\n\n## Evaluation\n\n{about}\n\n{table}\n"


_LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
```"""

_LIMITS = """- Trained on completions accepted in one organization; it may do worse on other dialects, schemas and styles.
- It completes at a cursor. It was not trained to follow instructions or to hold a conversation.
- A completion may name tables or columns that do not exist, or parse and still be wrong. Review it before running it.
- It may repeat text of its training rows."""


def _origin(base: BaseModel | None) -> str:
    if base is None:
        return "Trained from scratch."
    return f"Fine-tuned from {base.name}."


def _data(rows: RowAccount) -> dict[str, Any]:
    return {
        "rows": f"{rows.rows_in:,}",
        "kept": f"{rows.kept:,}",
        "rejected": f"{sum(rows.rejected.values()):,}" + (f" ({rows.reasons})" if rows.rejected else ""),
        **({"in neither split": f"{rows.left_out:,}"} if rows.left_out else {}),
        "for training": f"{rows.train:,}",
        "held out": f"{rows.eval:,}",
    }


def _training(experiment: Experiment, result: TrainResult) -> dict[str, Any]:
    return {
        "trained": _TRAINED[experiment.model.trains],
        "optimizer steps": f"{result.steps:,}",
        "rows per step": result.batch_rows,
        "rows, counted once an epoch": f"{result.rows:,}",
        "tokens": f"{result.tokens:,}",
        "epochs": result.epochs,
        "learning rate, peak": f"{experiment.optimizer.lr:g}",
        "schedule": f"{experiment.scheduler.name}, {result.warmup_steps} steps of warm-up",
        "gradient clipping (norm)": experiment.deepspeed["gradient_clipping"] or "-",
        "loss": "each row counts once" if experiment.data.sample_weighted_loss else "each token counts once",
        "held-out loss before, after (nats)": f"{_number(result.loss_before)}, {_number(result.loss_after)}",
        "packing": result.packing,
        "seed": experiment.seed,
    }


def _complete(experiment: Experiment, recipe: Recipe) -> str:
    tokens = recipe.fim_tokens
    template = f"Template `{recipe.template}`." if recipe.has_template else "The template is not known."
    if recipe.fim_order == "psm":
        markers = f"{tokens.prefix}{{text before the cursor}}{tokens.suffix}{{text after it}}{tokens.middle}"
    else:
        markers = f"{tokens.suffix}{{text after the cursor}}{tokens.prefix}{{text before it}}{tokens.middle}"
    return f"""```bash
echo 'SELECT order_id, <fillMe> FROM orders' | fim complete --checkpoint path/of/this/folder
vllm serve path/of/this/folder --served-model-name {experiment.name} --generation-config vllm
```

{template} Each prompt ends with

```
{markers}
```

and the model generates the missing text, then `{tokens.end}`. Generation stops there and at the other tokens of
`eos_token_id` in generation_config.json. `{RECIPE}` describes how prompts were built; `fim complete` and `fim serve` read
it and build the same token ids."""


def _hub_datasets(data: DataConfig) -> list[str]:
    """Ids of the data sets from the hub, without files, folders and globs."""
    places = [source.name_or_path or "" for source in data.sources if source.type.startswith("huggingface")]
    return sorted({place for place in places if _HUB_ID.fullmatch(place) and not Path(place).exists()})


def _front_matter(card: Path) -> dict[str, Any]:
    """The front matter of a card; empty if the card is missing or unreadable."""
    try:
        return metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _license(front: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("license", "license_name", "license_link")
    return {key: front[key] for key in keys if isinstance(front.get(key), str)}


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
