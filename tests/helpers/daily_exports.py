"""Exports by day, and an experiment that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_pipeline import TINY, write_experiment
from transformers import PreTrainedTokenizerFast

from fim_core.demo.export import write_export


def write_day(folder: Path, day: str, rows: int) -> None:
    """The export of a day, a file `exports/<day>/rows.csv` with other rows than those of other days."""
    path = folder / "exports" / day / "rows.csv"
    path.parent.mkdir(parents=True)
    write_export(path, rows=rows, seed=int(day.replace("-", "")))


def write_daily_experiment(folder: Path, tokenizer: PreTrainedTokenizerFast, **data: Any) -> Path:
    """The tiny experiment with the exports of `write_day`; `data` are further options of that section."""
    tokenizer.save_pretrained(folder / "tokenizer")
    return write_experiment(
        folder,
        model=TINY["model"] | {"tokenizer": str(folder / "tokenizer")},
        data={"sources": [{"name_or_path": f"{folder}/exports/{{date}}/*.csv"}], "max_length": 2048, **data},
    )
