"""Construction of the benchmark: queries with a masked span, checked by running them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from fim_core.atomic import require_free, staging
from fim_core.benchmark.masks import MASKS, choose_mask
from fim_core.benchmark.queries import write_query
from fim_core.benchmark.schemas import SCHEMAS, BenchmarkSchema
from fim_core.errors import DamagedFile, FimError
from fim_core.integrity import digest_of, read_sealed, write_sealed
from fim_core.metrics.completed_sql import CompletedSql
from fim_core.metrics.execution import Comparison, Database, Sandbox
from fim_core.metrics.rows import EvalRow

DIALECT = "snowflake"
ITEMS = "items.jsonl"
SETTINGS = "benchmark.json"

_TRIES_PER_ITEM = 40


def build_benchmark(output: Path, *, items_per_kind: int, seed: int) -> dict[str, int]:
    """Write a benchmark: `items.jsonl`, one item per line, and `benchmark.json` with the settings of its tables.

    Every query with its gold completion runs on the benchmark's rows and returns some. If the gold completion is not empty,
    the query without it does not return the same rows, so an empty completion is never correct by chance. The same seed
    gives the same benchmark, byte for byte.

    Args:
        output: folder, created if it does not exist.
        items_per_kind: number of items for each kind of mask.
        seed: seed of queries, masks and rows.

    Returns:
        Numbers of items by kind.

    Raises:
        FimError: the folder contains such files already, or `items_per_kind` exceeds what the queries allow.
    """
    require_free(output / ITEMS, output / SETTINGS)
    items = make_items(items_per_kind, seed)
    lines = [json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items]
    settings = {"seed": seed, "items_per_kind": items_per_kind, "dialect": DIALECT, "rows": _rows_digest(seed)}
    # Publish both files or none: one alone would block the next attempt.
    with staging(output) as folder:
        (folder / ITEMS).write_text("".join(lines), encoding="utf-8")
        write_sealed(folder / SETTINGS, settings | {"items": digest_of(folder / ITEMS)})
    return {kind: sum(item.type == kind for item in items) for kind in MASKS}


def make_items(items_per_kind: int, seed: int) -> list[EvalRow]:
    """Make the items of a benchmark, kind by kind. Their group is the query, since masks in one query are alike.

    Raises:
        FimError: `items_per_kind` exceeds what the queries allow.
    """
    rng = Random(seed)
    databases = make_databases(seed)
    sandbox = Sandbox()
    try:
        items: list[EvalRow] = []
        for kind in MASKS:
            found = _distinct(_candidates(kind, rng), items_per_kind, databases, sandbox)
            if len(found) < items_per_kind:
                raise FimError(
                    f"The queries allow only {len(found)} items of kind {kind}. Ask for fewer items per kind."
                )
            items += found
    finally:
        sandbox.close()
    return items


def make_databases(seed: int) -> dict[str, Database]:
    """Make the rows of every schema's tables."""
    return {schema.name: schema.rows(seed) for schema in SCHEMAS}


def read_benchmark(folder: Path) -> tuple[list[EvalRow], dict[str, Any]]:
    """Read the items of a benchmark and its settings.

    Raises:
        FimError: there is no benchmark, or this version of the package would fill its tables with other rows.
        DamagedFile: a file differs from what was built.
    """
    try:
        settings = read_sealed(folder / SETTINGS)
        whole = digest_of(folder / ITEMS) == settings["items"]
    except FileNotFoundError as error:
        raise FimError(
            f"There is no benchmark in {folder}. Build one with `fim benchmark build -o {folder}`."
        ) from error
    if not whole:
        raise DamagedFile(
            f"{folder / ITEMS} is damaged or was changed after it was built. Build the benchmark again, in another folder."
        )
    if settings.get("rows") != _rows_digest(settings["seed"]):
        raise FimError(
            f"The benchmark in {folder} was built by another version of the package, which fills its tables with other rows, "
            "so figures would not be comparable. Run it with that version, or build it again."
        )
    lines = (folder / ITEMS).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [EvalRow(**json.loads(line)) for line in lines], settings


def _rows_digest(seed: int) -> str:
    return hashlib.sha256(repr(make_databases(seed)).encode()).hexdigest()[:16]


def _candidates(kind: str, rng: Random) -> Iterator[EvalRow]:
    while True:
        schema = rng.choice(SCHEMAS)
        query = write_query(schema, rng)
        span = choose_mask(kind, query, _names(schema), rng)
        if span is not None:
            yield EvalRow(
                row_id="",
                type=kind,
                group=query,
                prefix=query[: span[0]],
                suffix=query[span[1] :],
                completion=query[span[0] : span[1]],
                ddl=schema.ddl(),
                database=schema.name,
            )


def _distinct(
    candidates: Iterator[EvalRow], number: int, databases: dict[str, Database], sandbox: Sandbox
) -> list[EvalRow]:
    """The first `number` candidates that are distinct and valid, numbered."""
    found: dict[tuple[str, str], EvalRow] = {}
    for _ in range(number * _TRIES_PER_ITEM):
        if len(found) == number:
            break
        item = next(candidates)
        place = (item.prefix, item.suffix)
        if place not in found and _is_valid(item, databases[item.database], sandbox):
            found[place] = EvalRow(**asdict(item) | {"row_id": f"{item.type}-{len(found)}"})
    return list(found.values())


def _is_valid(item: EvalRow, database: Database, sandbox: Sandbox) -> bool:
    gold, empty = (CompletedSql(item.prefix, text, item.suffix, DIALECT) for text in (item.completion, ""))
    with closing(Comparison(gold, item.ddl, sandbox, database)) as comparison:
        return comparison.run_gold() is None and comparison.matches(empty) == (item.completion == "")


def _names(schema: BenchmarkSchema) -> set[str]:
    return {name for table in schema.tables for name in (table.name, *schema.columns(table))}
