"""Whether the names in a completed statement mean something: tables and columns against the DDL that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from sqlglot import exp
from sqlglot.optimizer.normalize_identifiers import normalize_identifiers
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import traverse_scope
from sqlglot.schema import MappingSchema

from fim_core.evaluation.metrics.completed import CompletedSql, parse_statement, split_statements

ColumnTypes = Mapping[str, exp.DataType]
"""Columns of a table by name, in their order."""


@dataclass(frozen=True)
class BoundQuery:
    """A query whose names all resolve; tables go by their key in the catalog, columns by table and name."""

    query: exp.Query
    tables: dict[str, ColumnTypes]


class Catalog:
    """The tables that a text of CREATE TABLE and CREATE VIEW statements defines.

    A later definition of a name replaces the earlier one. Views and tables made from a query are known by the names
    of its columns; those that select `*` are left out, and so is what sqlglot does not understand.
    """

    def __init__(self, ddl: str, dialect: str) -> None:
        self.dialect = dialect
        self.tables: dict[tuple[str, ...], ColumnTypes] = {}
        for statement in split_statements(ddl, dialect):
            if isinstance(tree := parse_statement(statement, dialect), exp.Create):
                self._define(normalize_identifiers(tree, dialect=dialect))
        self._schema = MappingSchema(
            {_key(name): dict(columns) for name, columns in self.tables.items()}, dialect=dialect, normalize=False
        )

    def bind(self, tree: exp.Expr) -> list[BoundQuery] | None:
        """The queries of a statement with every name resolved.

        None where a table or column does not resolve, or is ambiguous, and for statements that name no columns of
        tables (GRANT, SHOW …).
        """
        queries = _queries_of(normalize_identifiers(tree.copy(), dialect=self.dialect))
        bound = [self._bind_query(query) for query in queries]
        return [b for b in bound if b] if bound and all(bound) else None

    def _define(self, tree: exp.Create) -> None:
        if tree.kind not in {"TABLE", "VIEW"}:
            return
        target, columns = tree.this, {}
        if isinstance(target, exp.Schema):
            for column in target.find_all(exp.ColumnDef):
                if column.parent is target:
                    # A copy, so that the rest of the tree is not kept with it.
                    columns[column.name] = column.kind.copy() if column.kind else exp.DataType.build("unknown")
            target = target.this
        elif isinstance(tree.expression, exp.Query) and not tree.expression.is_star:
            columns = {name: exp.DataType.build("unknown") for name in tree.expression.named_selects}
        if isinstance(target, exp.Table) and columns:
            self.tables[tuple(part.name for part in target.parts)] = columns

    def _bind_query(self, query: exp.Query) -> BoundQuery | None:
        used: dict[str, ColumnTypes] = {}
        try:
            for table in _tables_of(query):
                if (name := self._find(table)) is None:
                    return None
                used[_key(name)] = self.tables[name]
                _rename(table, _key(name))
            for column in query.find_all(exp.Column):
                column.set("db", None)
                column.set("catalog", None)
            qualified = qualify(
                query, schema=self._schema, dialect=self.dialect, quote_identifiers=False, validate_qualify_columns=True
            )
        except MemoryError:
            raise
        # On trees that no database would accept, the optimizer also fails with errors of other kinds.
        except Exception:
            return None
        return BoundQuery(qualified, used) if isinstance(qualified, exp.Query) else None

    def _find(self, table: exp.Table) -> tuple[str, ...] | None:
        """The defined name that a reference means: one of them may leave out database or schema."""
        parts = tuple(part.name for part in table.parts)
        for name in reversed(self.tables):
            shared = min(len(name), len(parts))
            if name[-shared:] == parts[-shared:]:
                return name
        return None


def binds(gold: CompletedSql, predicted: CompletedSql, ddl: str) -> bool | None:
    """Whether every table and column of the statements that the prediction touches resolves.

    Names resolve against the CREATE statements of the row's DDL context and of the document before the cursor, by the
    scoping rules of sqlglot's `qualify`. Judged are queries, the queries in CREATE … AS and INSERT, UPDATE and DELETE.
    None, not applicable, where the statement with the gold completion does not bind: then the context does not
    define what the statement is about.
    """
    if bound_queries(gold, ddl) is None:
        return None
    return bound_queries(predicted, ddl) is not None


@lru_cache(maxsize=16)
def bound_queries(sql: CompletedSql, ddl: str) -> list[BoundQuery] | None:
    """All queries in the statements that a completion touches, resolved; None where anything does not resolve.

    Several measures of one row ask for them; what they get is not to be changed.
    """
    if sql.trees is None:
        return None
    catalog = catalog_of(";\n".join([ddl, *sql.earlier_definitions]), sql.dialect)
    bound = [catalog.bind(tree) for tree in sql.trees] if catalog.tables else [None]
    return [query for queries in bound if queries for query in queries] if all(bound) else None


@lru_cache(maxsize=16)
def catalog_of(ddl: str, dialect: str) -> Catalog:
    """The catalog of a DDL text; rows of one worksheet share it."""
    return Catalog(ddl, dialect)


def _key(name: tuple[str, ...]) -> str:
    return ".".join(name)


def _tables_of(query: exp.Query) -> list[exp.Table]:
    """The references to tables by name, without those to common table expressions, functions and stages."""
    sources = [source for scope in traverse_scope(query) for source in scope.sources.values()]
    named = [s for s in sources if isinstance(s, exp.Table) and isinstance(s.this, exp.Identifier)]
    return list({id(table): table for table in named}.values())


def _rename(table: exp.Table, key: str) -> None:
    if not table.alias:
        table.set("alias", exp.TableAlias(this=table.this.copy()))
    table.set("this", exp.to_identifier(key, quoted=True))
    table.set("db", None)
    table.set("catalog", None)


def _queries_of(tree: exp.Expr) -> list[exp.Query]:
    """The queries that use the same names as a statement; none for kinds that are not judged."""
    if isinstance(tree, exp.Query):
        return [tree]
    if isinstance(tree, exp.Create):
        return [tree.expression] if isinstance(tree.expression, exp.Query) else []
    if isinstance(tree, exp.Insert):
        target = tree.this
        names = target.expressions if isinstance(target, exp.Schema) else [exp.Star()]
        columns = [exp.column(name.copy()) if isinstance(name, exp.Identifier) else name for name in names]
        into = exp.select(*columns).from_(target.this if isinstance(target, exp.Schema) else target)
        return [into, tree.expression] if isinstance(tree.expression, exp.Query) else [into]
    if isinstance(tree, exp.Update | exp.Delete):
        sources = tree.args.get("using") or ([tree.args["from_"].this] if tree.args.get("from_") else [])
        changed = exp.select(*(tree.expressions or [exp.Literal.number(1)])).from_(tree.this)
        for source in sources:
            changed = changed.join(source, join_type="cross")
        where = tree.args.get("where")
        return [changed.where(where.this) if where else changed]
    return []
