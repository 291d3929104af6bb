"""Made-up databases of the benchmark and their rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from random import Random
from typing import Any

from fim_core.metrics.generated_rows import NOW


@dataclass(frozen=True)
class BenchmarkTable:
    """A table.

    Attributes:
        name, alias: as used in queries.
        key: column with the number of the row, from 1.
        parent: name of the table that each row references by that table's key.
        time: a TIMESTAMP_NTZ column.
        texts: VARCHAR columns and their values.
        numbers: NUMBER(10, 2) columns and their maximum values.
    """

    name: str
    alias: str
    key: str
    time: str
    texts: dict[str, tuple[str, ...]]
    numbers: dict[str, int]
    parent: str | None = None


@dataclass(frozen=True)
class BenchmarkSchema:
    """A database; `tables[0]` is the parent of the other tables."""

    name: str
    tables: tuple[BenchmarkTable, ...]

    @property
    def facts(self) -> tuple[BenchmarkTable, ...]:
        """The tables that have a parent."""
        return tuple(table for table in self.tables if table.parent)

    def parent_of(self, table: BenchmarkTable) -> BenchmarkTable:
        """The parent of a table."""
        return next(parent for parent in self.tables if parent.name == table.parent)

    def columns(self, table: BenchmarkTable) -> dict[str, str]:
        """Types by column."""
        reference = {self.parent_of(table).key: "NUMBER"} if table.parent else {}
        texts = dict.fromkeys(table.texts, "VARCHAR")
        numbers = dict.fromkeys(table.numbers, "NUMBER(10, 2)")
        return {table.key: "NUMBER"} | reference | texts | numbers | {table.time: "TIMESTAMP_NTZ"}

    def ddl(self) -> str:
        """The CREATE TABLE statements of all tables."""
        return "\n".join(
            f"CREATE TABLE {table.name} ({', '.join(f'{c} {kind}' for c, kind in self.columns(table).items())});"
            for table in self.tables
        )

    def rows(self, seed: int) -> dict[str, list[tuple[Any, ...]]]:
        """Rows by table name in upper case, as Snowflake folds it. The same seed gives the same rows."""
        rng = Random(f"{self.name}.{seed}")
        sizes = {table.name: 60 if table.parent else 15 for table in self.tables}
        return {
            table.name.upper(): [
                (
                    number,
                    *([rng.randint(1, sizes[table.parent])] if table.parent else []),
                    *(None if rng.random() < 0.04 else rng.choice(values) for values in table.texts.values()),
                    *(Decimal(rng.randint(1, most * 100)) / 100 for most in table.numbers.values()),
                    NOW - timedelta(minutes=rng.randint(0, 200 * 24 * 60)),
                )
                for number in range(1, sizes[table.name] + 1)
            ]
            for table in self.tables
        }


# fmt: off
SCHEMAS = (
    BenchmarkSchema("library", (
        BenchmarkTable("readers", "rd", "reader_id", "enrolled_at",
              {"quarter": ("docks", "mill", "hill"), "card_kind": ("child", "adult", "guest")}, {"deposit": 40}),
        BenchmarkTable("checkouts", "ck", "checkout_id", "taken_at",
              {"shelf": ("poetry", "maps", "novels", "scores"), "desk": ("ground", "upper")},
              {"late_fee": 25, "weeks_kept": 9}, "readers"),
        BenchmarkTable("reservations", "rs", "reservation_id", "placed_at",
              {"medium": ("book", "record", "film"), "outcome": ("fetched", "lapsed", "waiting")},
              {"queue_place": 12}, "readers"),
    )),
    BenchmarkSchema("ferry", (
        BenchmarkTable("vessels", "vs", "vessel_id", "launched_at",
              {"hull": ("steel", "timber", "alloy"), "home_port": ("brest", "kiel", "bari", "split")}, {"berths": 90}),
        BenchmarkTable("crossings", "cr", "crossing_id", "departed_at",
              {"lane": ("inner", "outer", "night"), "sea_state": ("calm", "choppy", "rough")},
              {"fuel_tons": 60, "delay_minutes": 150}, "vessels"),
        BenchmarkTable("inspections", "ip", "inspection_id", "inspected_at",
              {"finding": ("rust", "wiring", "none"), "inspector": ("avila", "brandt", "corti")},
              {"repair_cost": 900}, "vessels"),
    )),
    BenchmarkSchema("orchestra", (
        BenchmarkTable("musicians", "mu", "musician_id", "engaged_at",
              {"section": ("strings", "brass", "reeds"), "chair": ("first", "second", "tutti")}, {"stipend": 500}),
        BenchmarkTable("rehearsals", "rh", "rehearsal_id", "held_at",
              {"venue": ("hall", "studio", "barn"), "composer": ("suk", "bax", "orff", "ives")},
              {"hours_played": 8, "breaks_taken": 4}, "musicians"),
        BenchmarkTable("repairs", "rp", "repair_id", "handed_in_at",
              {"instrument": ("viola", "horn", "oboe"), "workshop": ("north lane", "old yard")},
              {"invoice": 300}, "musicians"),
    )),
)
