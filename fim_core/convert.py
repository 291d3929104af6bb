"""Conversion of an export to a data set of prompts and responses (`fim convert`).

Two files are written next to the data set: `<output>.summary.json` (counts) and `<output>.rejected.parquet` (every row
that was not used, with the reason and its original columns). Everything is written to a scratch folder and then renamed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fim_core.atomic import read_json_as
from fim_core.config import DataConfig, ModelConfig, Source
from fim_core.errors import DamagedFile, FimError
from fim_core.folders.prompts import PromptsFolder
from fim_core.object_storage.urls import checked_place, is_url
from fim_core.prompt_format.recipe import Recipe, read_recipe, schema_with, write_recipe
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.prompts import write_fim_prompts
from fim_core.records.schema import RAW_SCHEMA
from fim_core.records.sources import write_raw_completions
from fim_core.tokenization.shards import SplitWriter

Format = Literal["disk", "parquet"]

_COLUMNS = ["row_id", "type", "prompt", "response"]
_SCHEMA = pa.schema([(name, pa.string()) for name in _COLUMNS])


def convert(
    source: Path | str,
    output: Path | None = None,
    *,
    tokenizer: str,
    template: str = "chat",
    fim_order: Literal["psm", "spm"] = "psm",
    format: Format = "disk",
    input_col: str = "INPUT",
    output_col: str = "OUTPUT",
    skip_empty_output: bool = False,
    skip_empty_prefix: bool = False,
    num_proc: int = 1,
) -> tuple[Path, dict[str, Any]]:
    """Render an export's completions to text columns `prompt` and `response` (and `row_id`, `type`).

    The output carries the recipe of its prompts (see `fim_core.prompt_format.recipe`), so it can be a source of an experiment.

    Args:
        source: CSV, Parquet or JSON-lines file, or a folder of them; a path, or a URL of object storage.
        output: folder for `disk` (loads with `datasets.load_from_disk`), file for `parquet`. Default: next to
            the export (in the current folder if that is in object storage), its name without extension and
            `_hf_fim_dataset`. Replaced if an earlier call wrote it and nothing was changed since.
        tokenizer: folder or hub id; its chat markup and control tokens are used.

    Returns:
        the output, and the summary: rows_in, rows_kept, repaired, rejected (rows by reason; the counts add up); `markup`,
        a description of the prompts' markup; `files`, the written files with their sizes in bytes.

    Raises:
        FimError: the export, the tokenizer or the template cannot be used, or `output` holds something else.
    """
    try:
        place = checked_place(str(source))
    except ValueError as error:
        raise FimError(f"The export cannot be used: {error}.") from error
    output = output or default_output(place)
    summary_path, rejected_path = _sibling(output, ".summary.json"), _sibling(output, ".rejected.parquet")
    _require_own(output)
    data = DataConfig(
        sources=[Source(type="fim_completions", name_or_path=place, input_col=input_col, output_col=output_col)],
        template=template,
        fim_order=fim_order,
        eval_fraction=0,
        skip_empty_output=skip_empty_output,
        skip_empty_prefix=skip_empty_prefix,
        num_proc=num_proc,
    )
    model = ModelConfig(name_or_path=tokenizer)
    loaded = load_tokenizer(tokenizer)
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.parent / f".{output.name}-{os.getpid()}-{secrets.token_hex(4)}"
    scratch.mkdir()
    try:
        raw, prompts, ready = scratch / "raw.parquet", scratch / "prompts", scratch / "ready"
        write_raw_completions(data, raw, scratch / "downloads")
        counts = write_fim_prompts(raw, prompts, data=data, model=model, tokenizer=loaded, seed=0)
        raw.unlink()
        shutil.rmtree(scratch / "downloads", ignore_errors=True)
        _write_texts(PromptsFolder(prompts).rows, ready, format, read_recipe(prompts))
        _write_rejected(PromptsFolder(prompts).rejected, scratch / "rejected.parquet", input_col, output_col)
        summary = {
            "rows_in": counts.rows_in,
            "rows_kept": counts.rows_kept,
            "repaired": counts.repaired,
            "rejected": counts.rejected,
            "markup": counts.notice,
            "files": {
                **{f"{output.name}{name}": size for name, size in _sizes(ready).items()},
                rejected_path.name: (scratch / "rejected.parquet").stat().st_size,
            },
        }
        (scratch / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        _require_own(output)
        # The summary lists the files of the output, so it is removed first and written last.
        summary_path.unlink(missing_ok=True)
        if output.exists():
            os.rename(output, scratch / "replaced")
        os.rename(ready, output)
        os.replace(scratch / "rejected.parquet", rejected_path)
        os.replace(scratch / "summary.json", summary_path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return output, summary


def default_output(export: Path | str) -> Path:
    """`exports/july.csv.gz` gives `exports/july_hf_fim_dataset`, and `s3://bucket/july.csv` gives `july_hf_fim_dataset`."""
    text = str(export)
    source = Path(text.rstrip("/").rpartition("/")[2]) if is_url(text) else Path(export)
    # `.` and `..` are not names.
    source = source if source.name not in ("", "..") else source.resolve()
    name = source.name
    for suffix in (".gz", ".zst", ".csv", ".parquet", ".jsonl", ".json"):
        name = name.removesuffix(suffix)
    return source.with_name(f"{name}_hf_fim_dataset")


def _sibling(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)


def _require_own(output: Path) -> None:
    """Require that the paths of a conversion are free, or contain only what an earlier conversion wrote.

    Raises:
        FimError: a path contains something else.
    """
    summary, rejected = _sibling(output, ".summary.json"), _sibling(output, ".rejected.parquet")
    taken = [place for place in (output, rejected, summary) if os.path.lexists(place)]
    if not taken:
        return
    found = {f"{output.name}{name}": size for name, size in _sizes(output).items()}
    found |= {f"{rejected.name}{name}": size for name, size in _sizes(rejected).items()}
    vouched = _files_in(summary)
    if vouched is None or any(map(Path.is_symlink, taken)) or not found.items() <= vouched.items():
        raise FimError(
            f"{taken[0]} exists and was not written by `fim convert`, or was changed since. Name another output, or "
            "remove it."
        )


@dataclass(frozen=True)
class _Vouched:
    """What counts of a summary here: the files that were written, with their sizes."""

    files: dict[str, int]


def _files_in(summary: Path) -> dict[str, int] | None:
    """The files that a summary vouches for; None if it is none of ours."""
    try:
        return read_json_as(summary, _Vouched).files
    except (FileNotFoundError, DamagedFile):
        return None


def _sizes(place: Path) -> dict[str, int]:
    """Sizes of the files and folders in a folder by `/name`, or of a file by an empty name; links count as -1 bytes."""
    paths = [place, *place.rglob("*")] if place.is_dir() else [place] if os.path.lexists(place) else []
    sizes = {}
    for path in paths:
        name = str(path)[len(str(place)) :]
        if path.is_symlink():
            sizes[name] = -1
        elif not path.is_dir():
            sizes[name] = path.stat().st_size
        elif path != place:
            sizes[name] = 0
    return sizes


def _write_texts(prompts: Path, output: Path, format: Format, recipe: Recipe) -> None:
    batches = pq.ParquetFile(prompts).iter_batches(columns=_COLUMNS)
    tables = (pa.Table.from_batches([batch]).select(_COLUMNS).cast(_SCHEMA) for batch in batches)
    if format == "parquet":
        with pq.ParquetWriter(output, schema_with(_SCHEMA, recipe), compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
        return
    dataset = SplitWriter(output, _SCHEMA, split=None)
    for table in tables:
        dataset.write(table)
    dataset.close()
    write_recipe(output, recipe)


def _write_rejected(rejected: Path, output: Path, input_col: str, output_col: str) -> None:
    """The rejected rows with the columns that the export had, under its names."""
    source = pq.ParquetFile(rejected)
    names = {"input": input_col, "output": output_col, "type": "TYPE"}
    internal = set(RAW_SCHEMA.names) - {"row_id", *names}
    kept = [name for name in source.schema_arrow.names if name not in internal]
    schema = pa.schema([pa.field(names.get(name, name), pa.string()) for name in kept])
    with pq.ParquetWriter(output, schema, compression="zstd") as writer:
        for batch in source.iter_batches(columns=kept):
            writer.write_batch(pa.record_batch([batch.column(name) for name in kept], schema=schema))
