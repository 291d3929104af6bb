"""A small generator of Snowflake statements that remembers which part of the text is what.

A statement is built from nested parts (an identifier in an expression in a clause). Flattening it gives the text and
the span of each part: the places where an editor would have logged a completion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Literal

from fim_core.demo.schemas import STAGES, TEAMS, Subject, Table

PartKind = Literal["identifier", "expr", "clause"]


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of SQL that may hold other stretches."""

    kind: PartKind | None
    content: tuple[str | Part, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of a statement, and what they are."""

    kind: PartKind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Statement:
    """The text of a statement and the spans of its parts, outer parts after their inner ones."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Focus:
    """What one worksheet is about; most of its statements come back to it, so that earlier ones foretell later ones."""

    subject: Subject
    schema: str
    fact: Table
    parent: Table
    dimension: str
    value: str
    measure: str
    days: int
    limit: int


def choose_focus(subject: Subject, rng: Random) -> Focus:
    """What a new worksheet is about."""
    fact = rng.choice(subject.facts)
    parent = subject.table(rng.choice(list((fact.references or {}).values())))
    dimension = rng.choice(list(fact.dimensions))
    return Focus(
        subject=subject,
        schema=f"{rng.choice(TEAMS)}_{rng.choice(STAGES)}",
        fact=fact,
        parent=parent,
        dimension=dimension,
        value=rng.choice(fact.dimensions[dimension]),
        measure=rng.choice(fact.measures),
        days=rng.choice((7, 30, 90)),
        limit=rng.choice((10, 20, 100)),
    )


def write_statement(focus: Focus, rng: Random) -> Statement:
    """One statement of a worksheet, ended by a semicolon."""
    make = rng.choices(_MAKERS, _WEIGHTS)[0]
    return _flatten((*make(focus, rng), ";"))


def _flatten(content: Iterable[str | Part]) -> Statement:
    texts: list[str] = []
    spans: list[Span] = []

    def walk(parts: Iterable[str | Part], position: int) -> int:
        for part in parts:
            if isinstance(part, str):
                texts.append(part)
                position += len(part)
            else:
                start = position
                position = walk(part.content, position)
                if part.kind:
                    spans.append(Span(part.kind, start, position))
        return position

    walk(content, 0)
    return Statement("".join(texts), tuple(spans))


# Small parts ---------------------------------------------------------------------------------------------------------


def _identifier(name: str) -> Part:
    return Part("identifier", (name,))


def _expr(*content: str | Part) -> Part:
    return Part("expr", content)


def _clause(*content: str | Part) -> Part:
    return Part("clause", content)


def _column(table: Table, name: str) -> Part:
    return Part(None, (f"{table.alias}.", _identifier(name)))


def _qualified(focus: Focus, name: str) -> Part:
    return Part(None, (_identifier(focus.schema), ".", _identifier(name)))


def _from(focus: Focus) -> Part:
    return _clause("FROM ", _qualified(focus, focus.fact.name), f" AS {focus.fact.alias}")


def _listed(parts: Iterable[str | Part]) -> Part:
    content: list[str | Part] = []
    for part in parts:
        content += [", ", part] if content else [part]
    return Part(None, tuple(content))


def _usual(choice: str, others: Iterable[str], rng: Random) -> str:
    """What the worksheet is about, three times in four; else any of the table's own."""
    return choice if rng.random() < 0.75 else rng.choice(list(others))


def _dimension(focus: Focus, rng: Random) -> str:
    return _usual(focus.dimension, focus.fact.dimensions, rng)


def _measure(focus: Focus, rng: Random) -> str:
    return _usual(focus.measure, focus.fact.measures, rng)


def _join(focus: Focus) -> Part:
    fact, parent = focus.fact, focus.parent
    return _clause(
        "JOIN ", _qualified(focus, parent.name), f" AS {parent.alias} ON ",
        _expr(_column(parent, parent.key), " = ", _column(fact, parent.key)),
    )  # fmt: skip


def _recent(focus: Focus) -> Part:
    fact = focus.fact
    return _expr(_column(fact, fact.time), f" >= DATEADD(day, -{focus.days}, CURRENT_DATE())")


def _equals(focus: Focus, rng: Random) -> Part:
    dimension = _dimension(focus, rng)
    value = focus.value if dimension == focus.dimension else rng.choice(focus.fact.dimensions[dimension])
    return _expr(_column(focus.fact, dimension), f" = '{value}'")


def _where(focus: Focus, rng: Random) -> list[str | Part]:
    """Nothing, one condition, or two, on a line of its own."""
    roll = rng.random()
    if roll < 0.3:
        return []
    if roll < 0.6:
        return ["\n", _clause("WHERE ", _recent(focus))]
    if roll < 0.85:
        return ["\n", _clause("WHERE ", _equals(focus, rng))]
    return ["\n", _clause("WHERE ", _recent(focus), " AND ", _equals(focus, rng))]


def _aggregate(focus: Focus, rng: Random) -> tuple[Part, str]:
    """An aggregate with its alias, and the alias."""
    function, word = rng.choices((("SUM", "total"), ("AVG", "mean"), ("MAX", "top")), (3, 2, 1))[0]
    measure = _measure(focus, rng)
    alias = f"{word}_{measure}"
    return Part(None, (_expr(f"{function}(", _column(focus.fact, measure), ")"), " AS ", _identifier(alias))), alias


def _note(words: str, rng: Random) -> list[str | Part]:
    """A comment that says what follows, before a third of the queries."""
    return [f"-- {words}\n"] if rng.random() < 0.35 else []


# Whole statements ----------------------------------------------------------------------------------------------------

Content = tuple[str | Part, ...]


def _totals(focus: Focus, rng: Random) -> Content:
    """Aggregates by a dimension, of the fact or of its parent."""
    fact, parent = focus.fact, focus.parent
    aggregate, alias = _aggregate(focus, rng)
    joined = rng.random() < 0.4
    table, dimension = (parent, rng.choice(list(parent.dimensions))) if joined else (fact, _dimension(focus, rng))
    count = [Part(None, (_expr("COUNT(*)"), " AS ", _identifier("row_count")))] if rng.random() < 0.4 else []
    join: list[str | Part] = ["\n", _join(focus)] if joined else []
    limit: list[str | Part] = ["\n", _clause(f"LIMIT {focus.limit}")] if rng.random() < 0.4 else []
    return (
        *_note(f"{alias} of {fact.name} by {dimension}", rng),
        "SELECT ", _listed([_column(table, dimension), *count, aggregate]),
        "\n", _from(focus),
        *join,
        *_where(focus, rng),
        "\n", _clause("GROUP BY ", _column(table, dimension)),
        "\n", _clause("ORDER BY ", _identifier(alias), " DESC"),
        *limit,
    )  # fmt: skip


def _listing(focus: Focus, rng: Random) -> Content:
    """Rows of the fact, the newest first."""
    fact = focus.fact
    columns = [fact.key, _dimension(focus, rng), _measure(focus, rng), fact.time]
    return (
        *_note(f"latest {fact.name}", rng),
        "SELECT ", _listed(_column(fact, column) for column in columns),
        "\n", _from(focus),
        *_where(focus, rng),
        "\n", _clause("ORDER BY ", _column(fact, fact.time), " DESC"),
        "\n", _clause(f"LIMIT {focus.limit}"),
    )  # fmt: skip


def _newest_of_each(focus: Focus, rng: Random) -> Content:
    """A window and QUALIFY: the newest row of each parent."""
    fact, parent = focus.fact, focus.parent
    over = Part(None, ("PARTITION BY ", _column(fact, parent.key), " ORDER BY ", _column(fact, fact.time), " DESC"))
    return (
        *_note(f"newest {fact.name} of each {parent.key}", rng),
        "SELECT ", _listed([_column(fact, parent.key), _column(fact, _measure(focus, rng)), _column(fact, fact.time)]),
        "\n", _from(focus),
        *_where(focus, rng),
        "\n", _clause("QUALIFY ", _expr("ROW_NUMBER() OVER (", _expr(over), ") = 1")),
    )  # fmt: skip


def _by_month(focus: Focus, rng: Random) -> Content:
    """A CTE of monthly totals, and the change from month to month."""
    fact = focus.fact
    unit = rng.choice(("month", "week"))
    aggregate, alias = _aggregate(focus, rng)
    truncated = Part(None, (_expr(f"DATE_TRUNC('{unit}', ", _column(fact, fact.time), ")"), f" AS {unit}"))
    name = f"by_{unit}"
    return (
        f"WITH {name} AS (\n  SELECT ",
        _listed([truncated, aggregate]),
        "\n  ", _from(focus),
        "\n  ", _clause(f"GROUP BY {unit}"),
        f"\n)\nSELECT {unit}, ", _identifier(alias), ", ",
        _expr("LAG(", _identifier(alias), f") OVER (ORDER BY {unit})"), " AS previous",
        "\n", _clause("FROM ", _identifier(name)),
        "\n", _clause(f"ORDER BY {unit}"),
    )  # fmt: skip


def _create_table_as(focus: Focus, rng: Random) -> Content:
    """A table of totals, named after what it holds."""
    fact = focus.fact
    aggregate, _ = _aggregate(focus, rng)
    dimension = _dimension(focus, rng)
    return (
        "CREATE OR REPLACE TABLE ", _qualified(focus, f"{fact.name}_by_{dimension}"), " AS\nSELECT ",
        _listed([_column(fact, dimension), aggregate]),
        "\n", _from(focus),
        "\n", _clause("GROUP BY ", _column(fact, dimension)),
    )  # fmt: skip


def _flattened(focus: Focus, rng: Random) -> Content:
    """The items of a document column, one a row; a plain listing where the table has none."""
    fact = focus.fact
    if fact.document is None:
        return _listing(focus, rng)
    column, fields = fact.document
    field = rng.choice(fields)
    return (
        "SELECT ", _column(fact, fact.key), ", ", _expr(f"item.value:{field}::VARCHAR"), " AS ", _identifier(field),
        "\n", _from(focus), ",\n",
        _clause("LATERAL FLATTEN(INPUT => ", _column(fact, column), ":items) AS item"),
        *_where(focus, rng),
    )  # fmt: skip


def _insert(focus: Focus, rng: Random) -> Content:
    """Rows of the fact copied to its archive."""
    fact = focus.fact
    columns = [fact.key, _dimension(focus, rng), _measure(focus, rng), fact.time]
    return (
        "INSERT INTO ", _qualified(focus, f"{fact.name}_archive"),
        " (", _listed(_identifier(name) for name in columns), ")",
        "\nSELECT ", _listed(_column(fact, name) for name in columns),
        "\n", _from(focus),
        "\n", _clause("WHERE ", _column(fact, fact.time), f" < DATEADD(day, -{focus.days}, CURRENT_DATE())"),
    )  # fmt: skip


def _update(focus: Focus, rng: Random) -> Content:
    """One value of a dimension set for one row."""
    fact = focus.fact
    dimension = _dimension(focus, rng)
    return (
        "UPDATE ", _qualified(focus, fact.name),
        "\n", _clause("SET ", _identifier(dimension), f" = '{rng.choice(fact.dimensions[dimension])}'"),
        "\n", _clause("WHERE ", _identifier(fact.key), f" = {rng.randint(1, 99)}"),
    )  # fmt: skip


def _copy(focus: Focus, rng: Random) -> Content:
    """A file of a stage loaded into the fact."""
    fact = focus.fact
    kind = rng.choice(("CSV SKIP_HEADER = 1", "PARQUET", "JSON"))
    return (
        "COPY INTO ", _qualified(focus, fact.name),
        "\n", _clause(f"FROM @{focus.subject.name}_stage/", _identifier(fact.name)),
        "\n", _clause(f"FILE_FORMAT = (TYPE = {kind})"),
        "\n", _clause("ON_ERROR = 'CONTINUE'"),
    )  # fmt: skip


_MAKERS: tuple[Callable[[Focus, Random], Content], ...] = (
    _totals, _listing, _newest_of_each, _by_month, _create_table_as, _flattened, _insert, _update, _copy,
)  # fmt: skip
_WEIGHTS = (30, 16, 12, 10, 8, 7, 6, 6, 5)
