"""Tables, column schemas and column lineage as Dagster metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:
    import pyarrow as pa

ROW_COUNT = "dagster/row_count"
COLUMN_SCHEMA = "dagster/column_schema"
COLUMN_LINEAGE = "dagster/column_lineage"

Source = tuple[str, str]
"""An upstream asset and one of its columns."""


def table(columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> dg.MetadataValue:
    """A small table; `columns` maps each name to its type."""
    schema = dg.TableSchema(columns=[dg.TableColumn(name, kind) for name, kind in columns.items()])
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows], schema=schema)


def count_table(counts: Mapping[str, int], name: str) -> dg.MetadataValue:
    """Table of row counts by `name`."""
    rows = [{name: key or "(none)", "rows": count} for key, count in counts.items()]
    return table({name: "string", "rows": "int"}, rows)


def column_schema(schema: pa.Schema, descriptions: Mapping[str, str]) -> dg.TableSchema:
    """Columns of a table, with descriptions where given."""
    return dg.TableSchema(
        columns=[dg.TableColumn(field.name, str(field.type), descriptions.get(field.name)) for field in schema]
    )


def column_lineage(columns: Mapping[str, Sequence[Source]]) -> dg.TableColumnLineage:
    """Upstream columns that each column is made from."""
    return dg.TableColumnLineage(
        {
            name: [dg.TableColumnDep(asset_key=dg.AssetKey(asset), column_name=column) for asset, column in sources]
            for name, sources in columns.items()
        }
    )
