"""Checks of names that sqlglot's `qualify` does not check: call `prepare` before it, and `has_unresolved` after it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from sqlglot import exp
from sqlglot.optimizer.resolver import Resolver
from sqlglot.optimizer.scope import Scope, traverse_scope
from sqlglot.schema import Schema

FLATTEN_COLUMNS = ("SEQ", "KEY", "PATH", "INDEX", "VALUE", "THIS")
"""Columns of Snowflake's table function FLATTEN."""

SOURCES = (exp.Table, exp.TableFromRows, exp.Lateral)
"""Sources of columns, other than queries and VALUES."""

_ALIAS_CLAUSES = ("having", "qualify", "order")
_STAR_NAMES = "star_names"
"""Key in `Select.meta` for the columns that stars name, as (table or "", column); `qualify` replaces the stars."""


def prepare(query: exp.Query) -> None:
    """Record the columns that stars name, and give table functions and VALUES the columns that Snowflake gives them."""
    for select in query.find_all(exp.Select):
        select.meta[_STAR_NAMES] = [named for column in select.expressions for named in _star_names(column)]
    for source in query.find_all(exp.TableFromRows, exp.Values):
        if not source.alias_column_names and (columns := _default_columns(source)):
            alias = source.args.get("alias") or exp.TableAlias()
            alias.set("columns", [exp.to_identifier(name) for name in columns])
            source.set("alias", alias)


def has_unresolved(query: exp.Query, schema: Schema) -> bool:
    """Whether a qualified query contains an unresolved name. In a resolved query,

    - a column without a table is an output alias, in the HAVING, QUALIFY or ORDER BY of its own query;
    - the columns that `* EXCLUDE`, RENAME and REPLACE name are columns of the star;
    - the columns of a PIVOT or UNPIVOT are those that it creates;
    - no column belongs to a source with unknown columns.
    """
    if any(not _is_alias(column) for column in query.find_all(exp.Column) if not column.table):
        return True
    for scope in traverse_scope(query):
        resolver = Resolver(scope, schema)
        columns = {source: _source_columns(scope, resolver, source) for source in scope.selected_sources}
        if _has_unresolved_star(scope, columns) or _has_unresolved_column(scope, columns):
            return True
    return False


def is_unknown_source(source: exp.Expr) -> bool:
    """Whether the columns of a source cannot be known from table definitions: a stage, a function, a name in a string."""
    if isinstance(source, exp.Table):
        return not isinstance(source.this, exp.Identifier)
    if isinstance(source, exp.TableFromRows) or (isinstance(source, exp.Lateral) and isinstance(source.this, exp.Func)):
        return not source.alias_column_names and not _default_columns(source)
    return False


def _is_alias(column: exp.Column) -> bool:
    if isinstance(column.this, exp.Star):
        return True
    owner = column.find_ancestor(exp.Query)
    clause: exp.Expr | None = column
    while clause and clause.parent is not owner:
        clause = clause.parent
    return bool(owner and clause and clause.arg_key in _ALIAS_CLAUSES and column.name in owner.named_selects)


def _star_names(column: exp.Expr) -> Iterator[tuple[str, str]]:
    """The columns that the modifiers of a star name, with the table of the star."""
    star = column.this if isinstance(column, exp.Column) else column
    if not isinstance(star, exp.Star):
        return
    table = column.table if isinstance(column, exp.Column) else ""
    for excluded in star.args.get("except_") or []:
        yield (excluded.table if isinstance(excluded, exp.Column) else "") or table, excluded.name
    for renamed in star.args.get("rename") or []:
        yield table, renamed.this.name
    for replaced in star.args.get("replace") or []:
        yield table, replaced.alias


def _has_unresolved_star(scope: Scope, columns: Mapping[str, Collection[str]]) -> bool:
    named = scope.expression.meta.get(_STAR_NAMES, []) if isinstance(scope.expression, exp.Select) else []
    return any(
        not any(name in known or "*" in known for source, known in columns.items() if table in ("", source))
        for table, name in named
    )


def _has_unresolved_column(scope: Scope, columns: Mapping[str, Collection[str]]) -> bool:
    made: dict[str, Collection[str]] = {}
    for source, (node, _) in scope.selected_sources.items():
        pivots = node.args.get("pivots")
        if pivots or not columns[source]:
            made[pivots[-1].alias if pivots else source] = columns[source]
    return any(
        column.table in made and column.name not in made[column.table] and "*" not in made[column.table]
        for column in scope.columns
        if not column.find_ancestor(exp.Pivot)
    )


def _source_columns(scope: Scope, resolver: Resolver, source: str) -> Collection[str]:
    """The columns of a source after its pivots; empty if unknown."""
    columns: Collection[str] = resolver.get_source_columns(source)
    for pivot in scope.selected_sources[source][0].args.get("pivots") or []:
        columns = _pivoted(pivot, columns)
    return columns


def _pivoted(pivot: exp.Pivot, columns: Collection[str]) -> Collection[str]:
    made = pivot.output_columns(list(columns))
    given = pivot.alias_column_names
    return [*given, *list(made)[len(given) :]]


def _default_columns(source: exp.Expr) -> list[str]:
    if isinstance(source, exp.Values):
        row = source.expressions[0] if source.expressions else None
        return [f"COLUMN{place}" for place in range(1, len(row.expressions) + 1)] if isinstance(row, exp.Tuple) else []
    if isinstance(source.this, exp.Explode):
        return list(FLATTEN_COLUMNS)
    # GENERATOR returns rows without columns. A name that cannot occur marks the list of columns as known.
    return [" "] if source.this.sql_name() == "GENERATOR" or source.this.name.upper() == "GENERATOR" else []
