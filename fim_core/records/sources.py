"""From the sources of an experiment file to one raw table: every row of every export, verbatim, with an id."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby, repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from fim_core.batches import GroupWriter
from fim_core.config.data import DataConfig, Source
from fim_core.errors import FimError
from fim_core.parallel import ordered_map
from fim_core.prompt_format.recipe import Recipe, schema_with
from fim_core.records.columns import ExportColumns, find_columns
from fim_core.records.locate import locate
from fim_core.records.readers import Export, read_file
from fim_core.records.schema import RAW_SCHEMA
from fim_core.records.selection import selected_rows, selects

_log = logging.getLogger(__name__)

MOST_TYPES = 50
OTHER_TYPES = "(other types)"

_FEW_VALUES = ["source", "source_type", "type"]

# The columns of rows that this package makes itself.
_GENERATED = {
    "type": "fim_completions",
    "input_col": "INPUT",
    "output_col": "OUTPUT",
    "type_col": "TYPE",
    "columns": None,
    "role_mapping": None,
}


@dataclass(frozen=True)
class ExportRead:
    """One export: its name, the SHA-256 of its bytes, and its rows.

    Its row_ids begin with the first 12 digits of `digest`; a second export of the same bytes gets a digest of its own.
    """

    name: str
    digest: str
    rows: int


@dataclass(frozen=True)
class RawCounts:
    """What was read, and what the user should know.

    Attributes:
        rows: in all.
        by_source, by_source_type: rows by the columns of these names.
        by_type: rows by the export's TYPE; the rarest together when there are more than MOST_TYPES.
        exports: what was read, in its order.
        left_out: rows of the exports that their source's slice or sample does not hold.
    """

    rows: int
    by_source: dict[str, int]
    by_source_type: dict[str, int]
    by_type: dict[str, int]
    exports: list[ExportRead]
    left_out: int = 0
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Input:
    """One export and how it is read.

    digest: unique hash that the row_ids begin with.
    held_out: it comes from `eval_sources`.
    selected: whether a row is read, bool [rows]; None for all of them.
    """

    export: Export
    columns: ExportColumns
    digest: str
    held_out: bool
    selected: np.ndarray | None


def write_raw_completions(data: DataConfig, output: Path) -> RawCounts:
    """Read all sources into one Parquet file, by batch: memory does not grow with the number of rows.

    Rows come in the order of the sources, files of a folder by name, then those of `eval_sources`. Columns are those of
    `RAW_SCHEMA`, then every other column of any export; one that an export does not have is empty there. Other
    columns whose names differ in case only are one column. The file carries the recipe of finished prompts (see
    `recipe_of`), if the sources have one.

    Raises:
        FimError: a source is missing, unreadable or damaged, lacks a column, or there is no row at all.
    """
    warnings: list[str] = []

    def warn(text: str) -> None:
        if text not in warnings:
            warnings.append(text)
            _log.warning("%s", text)

    by_export: Counter[str] = Counter()
    by_source: Counter[str] = Counter()
    by_source_type: Counter[str] = Counter()
    by_type: Counter[str] = Counter()

    def rows(inputs: list[_Input], extras: dict[str, str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for entry, batches in _read(inputs, data.num_proc, warn):
            for batch in _raw_batches(entry, batches, extras, schema):
                by_export[entry.digest] += batch.num_rows
                by_source[entry.export.name] += batch.num_rows
                by_source_type[entry.columns.source_type] += batch.num_rows
                by_type.update(dict(value.values() for value in batch.column("type").value_counts().to_pylist()))
                yield batch

    with TemporaryDirectory(prefix="fim-demo-") as scratch:
        inputs = _inputs(data, Path(scratch), warn)
        extras = _all_extras([entry.columns for entry in inputs])
        schema = pa.schema([*RAW_SCHEMA, *(pa.field(name, pa.string(), nullable=False) for name in extras.values())])
        if (recipe := _common_recipe(entry.export for entry in inputs)) is not None:
            schema = schema_with(schema, recipe)
        with GroupWriter(output, schema, use_dictionary=_FEW_VALUES) as writer:
            for batch in rows(inputs, extras, schema):
                writer.write(batch)
    if not any(by_source.values()):
        raise FimError(f"The sources hold no rows: {', '.join(sorted({entry.export.name for entry in inputs}))}.")
    return RawCounts(
        rows=by_source.total(),
        by_source=dict(by_source),
        by_source_type=dict(by_source_type),
        by_type=_most_frequent(by_type),
        exports=[ExportRead(entry.export.name, entry.digest, by_export[entry.digest]) for entry in inputs],
        left_out=sum(int((~entry.selected).sum()) for entry in inputs if entry.selected is not None),
        warnings=warnings,
    )


def _most_frequent(types: Counter[str]) -> dict[str, int]:
    shown = dict(types.most_common(MOST_TYPES))
    rest = types.total() - sum(shown.values())
    return shown | ({OTHER_TYPES: rest} if rest else {})


def digest_sources(data: DataConfig) -> str:
    """Hash of everything that the raw table is made from: names and bytes of the files, options of what is generated.

    Raises:
        FimError: a source is missing or unreadable, or the options contradict the recipe of its finished prompts.
    """
    digest = hashlib.sha256()
    found: list[Export] = []
    for held_out, source in _all_sources(data):
        if source.type == "demo":
            content: object = {"rows": source.rows, "seed": source.seed}
        else:
            exports = locate(source, data.cache_dir, _log.debug)
            content = [[export.name, export.digest()] for export in exports]
            found += exports
        options = source.model_dump(mode="json", exclude={"name_or_path"})
        digest.update(json.dumps([held_out, options, content], sort_keys=True).encode() + b"\n")
    if (recipe := _common_recipe(found)) is not None:
        recipe.refuse_contradictions(data)
    return digest.hexdigest()


def _common_recipe(exports: Iterable[Export]) -> Recipe | None:
    """The recipe of the finished prompts among exports; None where none says how it was made.

    Raises:
        FimError: there are several.
    """
    first: Export | None = None
    for export in exports:
        if export.recipe is None:
            continue
        if first is None or first.recipe is None:
            first = export
        elif not export.recipe.same_prompts_as(first.recipe):
            raise FimError(
                f"{first.name} and {export.name} hold finished prompts of different form. One model reads one form: "
                "convert both exports with the same tokenizer, template and options, or train on one of them."
            )
    return first.recipe if first else None


def _all_sources(data: DataConfig) -> Iterator[tuple[bool, Source]]:
    yield from ((False, source) for source in data.sources)
    yield from ((True, source) for source in data.eval_sources)


def _inputs(data: DataConfig, scratch: Path, warn: Callable[[str], None]) -> list[_Input]:
    inputs: list[_Input] = []
    seen: dict[str, list[_Input]] = {}
    for number, (held_out, source) in enumerate(_all_sources(data)):
        is_demo = source.type == "demo"
        exports = [_demo(source, scratch / f"{number}.csv")] if is_demo else locate(source, data.cache_dir, warn)
        masks = selected_rows(source, exports, warn) if selects(source) else repeat(None, len(exports))
        for export, selected in zip(exports, masks, strict=True):
            options = source.model_copy(update=_GENERATED) if export.generated else source
            columns = find_columns(export.columns, options, export.name)
            if export.recipe and source.render:
                raise FimError(f"{export.name} holds finished prompts, made by `fim convert`: leave out `render`.")
            if columns.notice:
                warn(columns.notice)
            digest = export.digest()
            same = seen.setdefault(digest, [])
            if twice := next((entry for entry in same if _overlap(entry.selected, selected)), None):
                warn(f"{export.name} holds the same bytes as {twice.export.name}: its rows come in once more.")
            # Ids stay unique.
            name = hashlib.sha256(f"{digest} {len(inputs)}".encode()).hexdigest() if same else digest
            same.append(_Input(export, columns, name, held_out, selected))
            inputs.append(same[-1])
    return inputs


def _overlap(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether two selections of the same rows have a row in common; None is all rows."""
    if one is None or other is None:
        return True
    return bool((one & other).any())


def _demo(source: Source, path: Path) -> Export:
    from fim_core.demo.export import write_export

    write_export(path, rows=source.rows, seed=source.seed)
    return replace(read_file(path, "demo"), generated=True)


def _all_extras(exports: list[ExportColumns]) -> dict[str, str]:
    """Folded name of every other column to the name it is kept under: the first spelling."""
    names: dict[str, str] = {}
    for columns in exports:
        for name in columns.extras:
            names.setdefault(name.casefold(), name)
    return names


def _read(
    inputs: list[_Input], num_proc: int, warn: Callable[[str], None]
) -> Iterator[tuple[_Input, Iterable[pa.RecordBatch]]]:
    """The batches of each export, in order; files that take long to read are read in several processes."""
    for whole, group in groupby(inputs, key=lambda entry: entry.export.whole):
        exports = list(group)
        if not whole:
            yield from ((entry, entry.export.batches(warn)) for entry in exports)
            continue
        workers = min(num_proc, len(exports))
        results = ordered_map(_whole_reader, (), [entry.export for entry in exports], num_proc=workers)
        for entry, (batches, warnings) in zip(exports, results, strict=True):
            for text in warnings:
                warn(text)
            yield entry, batches


def _whole_reader() -> Callable[[Export], tuple[list[pa.RecordBatch], list[str]]]:
    return _read_whole


def _read_whole(export: Export) -> tuple[list[pa.RecordBatch], list[str]]:
    warnings: list[str] = []
    return list(export.batches(warnings.append)), warnings


def _raw_batches(
    entry: _Input, batches: Iterable[pa.RecordBatch], extras: dict[str, str], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """The rows of one export in the raw table's columns."""
    columns = entry.columns
    own = {name.casefold(): at for name, at in columns.extras.items()}
    first = 0
    for whole in batches:
        numbers = np.arange(first, first + whole.num_rows)
        first += whole.num_rows
        batch = whole
        if entry.selected is not None:
            numbers = numbers[entry.selected[numbers]]
            batch = whole.take(pa.array(numbers - (first - whole.num_rows)))
        count = batch.num_rows
        ids = pa.array([f"{entry.digest[:12]}-{number}" for number in numbers.tolist()], pa.string())
        cells = [batch.column(at) for at in columns.inputs]
        if columns.join is not None:
            rows = zip(*(column.to_pylist() for column in cells), strict=True)
            text = pa.array(map(columns.join, rows), pa.string())
        else:
            (text,) = cells
        yield pa.RecordBatch.from_arrays(
            [
                ids,
                pa.repeat(entry.export.name, count),
                pa.repeat(columns.source_type, count),
                _column(batch, columns.type),
                text,
                _column(batch, columns.output),
                pa.repeat(pa.scalar(entry.held_out), count),
                *(_column(batch, own.get(name)) for name in extras),
            ],
            schema=schema,
        )


def _column(batch: pa.RecordBatch, at: int | None) -> pa.Array:
    return pa.repeat("", batch.num_rows) if at is None else batch.column(at)
