"""From the sources of an experiment file to one raw table: every row of every export, verbatim, with an id."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from fim_core.config.data import DataConfig, Source
from fim_core.errors import FimError
from fim_core.records.chat import messages_text
from fim_core.records.columns import Layout, layout_of
from fim_core.records.locate import locate
from fim_core.records.readers import Export
from fim_core.records.schema import RAW_SCHEMA

_log = logging.getLogger(__name__)

_EXPORT_COLUMNS = {"input_col": "INPUT", "output_col": "OUTPUT", "type_col": "TYPE", "columns": None, "role_mapping": None}


@dataclass(frozen=True)
class RawCounts:
    """What was read: rows in all, by `source`, by `source_type`; and what the user should know."""

    rows: int
    by_source: dict[str, int]
    by_type: dict[str, int]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """One export with what its columns are and where its rows are to be marked as coming from."""

    export: Export
    layout: Layout
    digest: str
    held_out: bool


def write_raw_completions(data: DataConfig, output: Path) -> RawCounts:
    """Read all sources into one Parquet file, by batch: memory does not grow with the number of rows.

    Rows come in the order of the sources, files of a folder by name, then those of `eval_sources`. Columns are those of
    `RAW_SCHEMA`, then every other column of any export; one that an export does not have is empty there. Other
    columns whose names differ in case only are one column.

    Raises:
        FimError: a source is missing, unreadable or damaged, lacks a column, or there is no row at all.
    """
    warnings: list[str] = []

    def warn(text: str) -> None:
        if text not in warnings:
            warnings.append(text)
            _log.warning("%s", text)

    by_source: Counter[str] = Counter()
    by_type: Counter[str] = Counter()
    with TemporaryDirectory(prefix="fim-demo-") as scratch:
        parts = _parts(data, Path(scratch), warn)
        extras = _union([part.layout for part in parts])
        schema = pa.schema([*RAW_SCHEMA, *(pa.field(name, pa.string(), nullable=False) for name in extras.values())])
        with pq.ParquetWriter(output, schema, compression="zstd", use_dictionary=["source", "source_type", "type"]) as writer:
            for part in parts:
                for batch in _raw_batches(part, extras, schema, warn):
                    writer.write_batch(batch)
                    by_source[part.export.name] += batch.num_rows
                    by_type[part.layout.shape] += batch.num_rows
    if not any(by_source.values()):
        raise FimError(f"The sources hold no rows: {', '.join(sorted({p.export.name for p in parts}))}.")
    return RawCounts(sum(by_source.values()), dict(by_source), dict(by_type), warnings)


def digest_sources(data: DataConfig) -> str:
    """Hash of everything that the raw table is made from: names and bytes of the files, options of what is generated.

    Raises:
        FimError: a source is missing or unreadable.
    """
    digest = hashlib.sha256()
    for held_out, source in _all_sources(data):
        if source.type == "demo":
            content: object = {"rows": source.rows, "seed": source.seed}
        else:
            content = [[export.name, export.digest()] for export in locate(source, data)]
        options = source.model_dump(mode="json", exclude={"name_or_path"})
        digest.update(json.dumps([held_out, options, content], sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _all_sources(data: DataConfig) -> Iterator[tuple[bool, Source]]:
    yield from ((False, source) for source in data.sources)
    yield from ((True, source) for source in data.eval_sources)


def _parts(data: DataConfig, scratch: Path, warn: Callable[[str], None]) -> list[_Part]:
    parts: list[_Part] = []
    seen: dict[str, str] = {}
    for number, (held_out, source) in enumerate(_all_sources(data)):
        generated = source.type in ("demo", "sql_files")
        exports = [_demo(source, scratch / f"{number}.csv")] if source.type == "demo" else locate(source, data, warn)
        for export in exports:
            own = source.model_copy(update=_EXPORT_COLUMNS) if generated or export.generated else source
            layout = layout_of(export.columns, own, export.name)
            if layout.notice:
                warn(layout.notice)
            digest = export.digest()
            if digest in seen:
                warn(f"{export.name} holds the same bytes as {seen[digest]}: its rows come in once more.")
                digest = hashlib.sha256(f"{digest} {len(parts)}".encode()).hexdigest()
            seen.setdefault(digest, export.name)
            parts.append(_Part(export, layout, digest, held_out))
    return parts
