"""A small generator of Snowflake statements with the spans of their syntax.

A statement is built from nested fragments (an identifier in an expression in a clause). Flattening it gives the text and
the span of each fragment: the places where an editor would have logged a completion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Literal

from fim_core.demo.schemas import STAGES, TEAMS, DemoTable, Subject

FragmentKind = Literal["identifier", "expr", "clause"]


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of SQL, which may contain other fragments. kind: None for one without a span."""

    kind: FragmentKind | None
    content: tuple[str | Fragment, ...]


@dataclass(frozen=True, slots=True)
class FragmentSpan:
    """Characters `start` to `end` of a statement, and their kind."""

    kind: FragmentKind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class DemoStatement:
    """The text of a statement and the spans of its fragments, outer ones after inner ones."""

    text: str
    spans: tuple[FragmentSpan, ...]


@dataclass(frozen=True)
class Focus:
    """The topic of a worksheet. Most of its statements use it, so that earlier statements help to predict later ones."""

    subject: Subject
    schema: str
    fact: DemoTable
    parent: DemoTable
    dimension: str
    value: str
    measure: str
    days: int
    limit: int


def choose_focus(subject: Subject, rng: Random) -> Focus:
    """Choose the topic of a new worksheet."""
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


def write_statement(focus: Focus, rng: Random) -> DemoStatement:
    """One statement of a worksheet, ended by a semicolon."""
    make = rng.choices(_MAKERS, _WEIGHTS)[0]
    return _flatten((*make(focus, rng), ";"))


def _flatten(content: Iterable[str | Fragment]) -> DemoStatement:
    texts: list[str] = []
    spans: list[FragmentSpan] = []

    def walk(parts: Iterable[str | Fragment], position: int) -> int:
        for part in parts:
            if isinstance(part, str):
                texts.append(part)
                position += len(part)
            else:
                start = position
                position = walk(part.content, position)
                if part.kind:
                    spans.append(FragmentSpan(part.kind, start, position))
        return position

    walk(content, 0)
    return DemoStatement("".join(texts), tuple(spans))


# Fragments ---------------------------------------------------------------------------------------------------------


def _identifier(name: str) -> Fragment:
    return Fragment("identifier", (name,))


def _expr(*content: str | Fragment) -> Fragment:
    return Fragment("expr", content)


def _clause(*content: str | Fragment) -> Fragment:
    return Fragment("clause", content)


def _column(table: DemoTable, name: str) -> Fragment:
    return Fragment(None, (f"{table.alias}.", _identifier(name)))


def _qualified(focus: Focus, name: str) -> Fragment:
    return Fragment(None, (_identifier(focus.schema), ".", _identifier(name)))


def _from(focus: Focus) -> Fragment:
    return _clause("FROM ", _qualified(focus, focus.fact.name), f" AS {focus.fact.alias}")


def _listed(parts: Iterable[str | Fragment]) -> Fragment:
    content: list[str | Fragment] = []
    for part in parts:
        content += [", ", part] if content else [part]
    return Fragment(None, tuple(content))


def _usual(choice: str, others: Iterable[str], rng: Random) -> str:
    """The worksheet's own choice with probability 0.75, else any of the table's."""
    return choice if rng.random() < 0.75 else rng.choice(list(others))


def _dimension(focus: Focus, rng: Random) -> str:
    return _usual(focus.dimension, focus.fact.dimensions, rng)


def _measure(focus: Focus, rng: Random) -> str:
    return _usual(focus.measure, focus.fact.measures, rng)


def _join(focus: Focus) -> Fragment:
    fact, parent = focus.fact, focus.parent
    return _clause(
        "JOIN ", _qualified(focus, parent.name), f" AS {parent.alias} ON ",
        _expr(_column(parent, parent.key), " = ", _column(fact, parent.key)),
    )  # fmt: skip


def _recent(focus: Focus) -> Fragment:
    fact = focus.fact
    return _expr(_column(fact, fact.time), f" >= DATEADD(day, -{focus.days}, CURRENT_DATE())")


def _equals(focus: Focus, rng: Random) -> Fragment:
    dimension = _dimension(focus, rng)
    value = focus.value if dimension == focus.dimension else rng.choice(focus.fact.dimensions[dimension])
    return _expr(_column(focus.fact, dimension), f" = '{value}'")


def _where(focus: Focus, rng: Random) -> list[str | Fragment]:
    """No condition, one or two, on a separate line."""
    roll = rng.random()
    if roll < 0.3:
        return []
    if roll < 0.6:
        return ["\n", _clause("WHERE ", _recent(focus))]
    if roll < 0.85:
        return ["\n", _clause("WHERE ", _equals(focus, rng))]
    return ["\n", _clause("WHERE ", _recent(focus), " AND ", _equals(focus, rng))]


def _aggregate(focus: Focus, rng: Random) -> tuple[Fragment, str]:
    """An aggregate with its alias, and the alias."""
    function, word = rng.choices((("SUM", "total"), ("AVG", "mean"), ("MAX", "top")), (3, 2, 1))[0]
    measure = _measure(focus, rng)
    alias = f"{word}_{measure}"
    return Fragment(None, (_expr(f"{function}(", _column(focus.fact, measure), ")"), " AS ", _identifier(alias))), alias


def _note(words: str, rng: Random) -> list[str | Fragment]:
    """A comment on the query, for a third of the queries."""
    return [f"-- {words}\n"] if rng.random() < 0.35 else []


# Whole statements ----------------------------------------------------------------------------------------------------

Content = tuple[str | Fragment, ...]


def _totals(focus: Focus, rng: Random) -> Content:
    """Aggregates by a dimension of the fact or of its parent."""
    fact, parent = focus.fact, focus.parent
    aggregate, alias = _aggregate(focus, rng)
    joined = rng.random() < 0.4
    table, dimension = (parent, rng.choice(list(parent.dimensions))) if joined else (fact, _dimension(focus, rng))
    count = [Fragment(None, (_expr("COUNT(*)"), " AS ", _identifier("row_count")))] if rng.random() < 0.4 else []
    join: list[str | Fragment] = ["\n", _join(focus)] if joined else []
    limit: list[str | Fragment] = ["\n", _clause(f"LIMIT {focus.limit}")] if rng.random() < 0.4 else []
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
    over = Fragment(None, ("PARTITION BY ", _column(fact, parent.key), " ORDER BY ", _column(fact, fact.time), " DESC"))
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
    truncated = Fragment(None, (_expr(f"DATE_TRUNC('{unit}', ", _column(fact, fact.time), ")"), f" AS {unit}"))
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
    """A table of totals, named after its content."""
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
