"""Parquet files and saved `datasets` as views of an in-memory DuckDB."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from duckdb import DuckDBPyConnection

from fim_core.atomic import read_json
from fim_core.errors import FimError

MEMORY_LIMIT = "1GB"


@contextmanager
def open_tables(tables: Mapping[str, Path]) -> Iterator[DuckDBPyConnection]:
    """Open an in-memory DuckDB with one view per table; nothing is copied or locked.

    Data beyond MEMORY_LIMIT spills into a temporary folder, which is removed at the end. A saved DatasetDict
    becomes one view over its splits, with the name of the split in a column `split`.

    Raises:
        FimError: a table does not exist.
    """
    with tempfile.TemporaryDirectory(prefix="fim-quality-") as spill, duckdb.connect(":memory:") as connection:
        connection.execute("SET memory_limit = $limit", {"limit": MEMORY_LIMIT})
        connection.execute("SET temp_directory = $spill", {"spill": spill})
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET autoinstall_known_extensions = false")
        for name, path in tables.items():
            _add_view(connection, name, Path(path))
        yield connection


def _add_view(connection: DuckDBPyConnection, name: str, path: Path) -> None:
    if path.is_file() and path.suffix == ".parquet":
        # DuckDB interprets the path as a glob pattern.
        connection.read_parquet(glob.escape(str(path))).create_view(name)
    elif (path / "dataset_dict.json").is_file():
        splits = read_json(path / "dataset_dict.json")["splits"]
        selects = []
        for split in splits:
            connection.register(f"{name}/{split}", saved_dataset(path / split))
            selects.append(f"""SELECT *, '{split.replace("'", "''")}' AS split FROM "{name}/{split}" """)
        connection.execute(f"CREATE VIEW {name} AS {' UNION ALL '.join(selects)}")
    elif (path / "state.json").is_file():
        connection.register(name, saved_dataset(path))
    else:
        raise FimError(f"There is no table {name} at {path}: neither a Parquet file nor a saved dataset.")


def saved_dataset(folder: Path) -> pa.Table:
    """Read a dataset that `datasets` saved: memory-mapped Arrow streams, whose rows take no memory."""
    files = read_json(folder / "state.json")["_data_files"]
    if not files:
        features = read_json(folder / "dataset_info.json")["features"]
        return pa.schema([(name, _arrow_type(feature)) for name, feature in features.items()]).empty_table()
    streams = [pa.ipc.open_stream(pa.memory_map(str(folder / file["filename"]))) for file in files]
    return pa.concat_tables([stream.read_all() for stream in streams])


def _arrow_type(feature: dict[str, Any]) -> pa.DataType:
    return pa.list_(_arrow_type(feature["feature"])) if "feature" in feature else pa.type_for_alias(feature["dtype"])
