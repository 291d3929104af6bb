"""Name resolution of a completed statement: its tables and columns against the known DDL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from sqlglot import exp
from sqlglot.optimizer.normalize_identifiers import normalize_identifiers
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import traverse_scope
from sqlglot.schema import MappingSchema

from fim_core.metrics.completed_sql import CompletedSql, parse_statement, split_statements
from fim_core.metrics.statement_queries import queries_of
from fim_core.metrics.unchecked_names import SOURCES, has_unresolved, is_unknown_source, prepare

ColumnTypes = Mapping[str, exp.DataType]
"""Column types of a table by column name, in order."""


@dataclass(frozen=True)
class BoundQuery:
    """A query with every name resolved: tables to their key in the catalog, columns to table and name."""

    query: exp.Query
    tables: dict[str, ColumnTypes]


class Catalog:
    """The tables defined by a text of CREATE TABLE and CREATE VIEW statements.

    A later definition of a name replaces an earlier one. Views and tables created from a query have the columns of the
    query, clones those of their origin. The columns of some definitions are unknown, such as a query on unknown tables.
    """

    def __init__(self, ddl: str, dialect: str) -> None:
        self.dialect = dialect
        self.tables: dict[tuple[str, ...], ColumnTypes | None] = {}
        """By name; None if the columns are unknown."""
        self._schema = MappingSchema(dialect=dialect, normalize=False)
        for statement in split_statements(ddl, dialect):
            if isinstance(tree := parse_statement(statement, dialect), exp.Create):
                self._define(normalize_identifiers(tree, dialect=dialect))

    def bind(self, tree: exp.Expr) -> list[BoundQuery] | None:
        """Resolve every name in the queries of a statement.

        None if a table or column does not resolve or is ambiguous, and for statements without queries (GRANT, SHOW …).
        """
        queries = queries_of(normalize_identifiers(tree.copy(), dialect=self.dialect))
        bound = [self._bind_query(query) for query in queries]
        return [b for b in bound if b] if bound and all(bound) else None

    def has_unknown_columns(self, tree: exp.Expr) -> bool:
        """Whether a statement reads from a source with unknown columns: a stage, a function, or a table that is defined
        without columns."""
        sources = list(normalize_identifiers(tree.copy(), dialect=self.dialect).find_all(*SOURCES))
        if any(is_unknown_source(source) for source in sources):
            return True
        tables = (self._find(source) for source in sources if isinstance(source, exp.Table))
        return any(name is not None and self.tables[name] is None for name in tables)

    def _define(self, tree: exp.Create) -> None:
        if tree.kind not in {"TABLE", "VIEW"}:
            return
        target = tree.this.this if isinstance(tree.this, exp.Schema) else tree.this
        if not isinstance(target, exp.Table):
            return
        name = tuple(part.name for part in target.parts)
        columns = self._columns_of(tree)
        self.tables.pop(name, None)  # the new definition becomes the last one
        self.tables[name] = columns
        if columns:
            self._schema.add_table(_table(_key(name)), dict(columns), normalize=False)

    def _columns_of(self, tree: exp.Create) -> ColumnTypes | None:
        if isinstance(tree.this, exp.Schema):
            named = [c for c in tree.this.expressions if isinstance(c, exp.ColumnDef | exp.Identifier)]
            if named:
                # Copies, so that the rest of the tree can be freed.
                return {c.name: c.args["kind"].copy() if c.args.get("kind") else _unknown() for c in named}
        if origin := tree.find(exp.Clone, exp.LikeProperty):
            name = self._find(origin.this)
            return None if name is None else self.tables[name]
        if isinstance(tree.expression, exp.Query):
            bound = self._bind_query(tree.expression.copy())
            query = bound.query if bound else tree.expression
            if not query.is_star:
                return {name: _unknown() for name in query.named_selects}
        return None

    def _bind_query(self, query: exp.Query) -> BoundQuery | None:
        used: dict[str, ColumnTypes] = {}
        try:
            for table in _tables_of(query):
                if (name := self._find(table)) is None or (columns := self.tables[name]) is None:
                    return None
                used[_key(name)] = columns
                _rename(table, _key(name))
            for column in query.find_all(exp.Column):
                column.set("db", None)
                column.set("catalog", None)
            prepare(query)
            qualified = qualify(
                query, schema=self._schema, dialect=self.dialect, quote_identifiers=False, validate_qualify_columns=True
            )
            if not isinstance(qualified, exp.Query) or has_unresolved(qualified, self._schema):
                return None
        except MemoryError:
            raise
        # On trees of invalid SQL, the optimizer also raises errors of other types.
        except Exception:
            return None
        return BoundQuery(qualified, used)

    def _find(self, table: exp.Table) -> tuple[str, ...] | None:
        """The definition that a table reference means; either may leave out database or schema."""
        parts = tuple(part.name for part in table.parts)
        for name in reversed(self.tables):
            shared = min(len(name), len(parts))
            if name[-shared:] == parts[-shared:]:
                return name
        return None


def binds(gold: CompletedSql, predicted: CompletedSql, ddl: str) -> bool | None:
    """Whether every table and column of the statements that the prediction touches resolves.

    Names resolve against the CREATE statements of the row's DDL context and of the document before the cursor, by the
    scoping rules of sqlglot's `qualify`. This covers queries, the queries in CREATE … AS and INSERT, and UPDATE, DELETE and
    MERGE. None (not applicable) where the statement with the gold completion does not bind, since then the context lacks
    its tables, and where the prediction does not bind but reads from a source with unknown columns.
    """
    return None if bound_queries(gold, ddl) is None else resolves(predicted, ddl)


def resolves(sql: CompletedSql, ddl: str) -> bool | None:
    """Whether every table and column of the statements that a completion touches resolves, without a gold completion.

    None where that cannot be known: there are no definitions, or the statements do not bind but read from a source with
    unknown columns.
    """
    if bound_queries(sql, ddl) is not None:
        return True
    catalog = _catalog_for(sql, ddl)
    if not any(catalog.tables.values()):
        return None
    return None if any(catalog.has_unknown_columns(tree) for tree in sql.trees or []) else False


@lru_cache(maxsize=16)
def bound_queries(sql: CompletedSql, ddl: str) -> list[BoundQuery] | None:
    """Resolve all queries in the statements that a completion touches; None if any name does not resolve.

    Several measures of one row share the cached result; do not modify it.
    """
    if sql.trees is None:
        return None
    catalog = _catalog_for(sql, ddl)
    bound = [catalog.bind(tree) for tree in sql.trees] if any(catalog.tables.values()) else [None]
    return [query for queries in bound if queries for query in queries] if all(bound) else None


@lru_cache(maxsize=16)
def catalog_of(ddl: str, dialect: str) -> Catalog:
    """The catalog of a DDL text, cached because rows of one worksheet share it."""
    return Catalog(ddl, dialect)


def _catalog_for(sql: CompletedSql, ddl: str) -> Catalog:
    return catalog_of(";\n".join([ddl, *sql.earlier_definitions]), sql.dialect)


def _key(name: tuple[str, ...]) -> str:
    return ".".join(name)


def _tables_of(query: exp.Query) -> list[exp.Table]:
    """The references to tables by name; not common table expressions, functions and stages."""
    sources = [source for scope in traverse_scope(query) for source in scope.sources.values()]
    named = [s for s in sources if isinstance(s, exp.Table) and isinstance(s.this, exp.Identifier)]
    return list({id(table): table for table in named}.values())


def _rename(table: exp.Table, key: str) -> None:
    if not table.alias:
        table.set("alias", exp.TableAlias(this=table.this.copy()))
    table.set("this", exp.to_identifier(key, quoted=True))
    table.set("db", None)
    table.set("catalog", None)


def _table(key: str) -> exp.Table:
    return exp.Table(this=exp.to_identifier(key, quoted=True))


def _unknown() -> exp.DataType:
    return exp.DataType.build("unknown")
