"""Statements as queries over the same names, for name resolution: INSERT, UPDATE, DELETE and MERGE become a SELECT."""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp


def queries_of(tree: exp.Expr) -> list[exp.Query]:
    """The queries that use the same names as a statement; empty for statements whose names are not resolved."""
    if isinstance(tree, exp.Query):
        return [tree]
    if isinstance(tree, exp.Create):
        return [tree.expression] if isinstance(tree.expression, exp.Query) else []
    if isinstance(tree, exp.Insert):
        return _of_insert(tree)
    if isinstance(tree, exp.Update | exp.Delete):
        return [_of_change(tree)]
    if isinstance(tree, exp.Merge):
        return [_of_merge(tree)]
    return []


def _of_insert(tree: exp.Insert) -> list[exp.Query]:
    target = tree.this
    names = target.expressions if isinstance(target, exp.Schema) else [exp.Star()]
    columns = [exp.column(name.copy()) if isinstance(name, exp.Identifier) else name for name in names]
    into = exp.select(*columns).from_(target.this if isinstance(target, exp.Schema) else target)
    return [into, tree.expression] if isinstance(tree.expression, exp.Query) else [into]


def _of_change(tree: exp.Update | exp.Delete) -> exp.Query:
    sources = tree.args.get("using") or ([tree.args["from_"].this] if tree.args.get("from_") else [])
    changes = [_of_target(change, tree.this) for change in tree.expressions]
    changed = exp.select(*(changes or [exp.Literal.number(1)])).from_(tree.this)
    for source in sources:
        changed = changed.join(source, join_type="cross")
    where = tree.args.get("where")
    return changed.where(where.this) if where else changed


def _of_merge(tree: exp.Merge) -> exp.Query:
    used = [part for when in tree.args["whens"].expressions for part in _of_when(when, tree.this)]
    joined = exp.select(*(used or [exp.Literal.number(1)])).from_(tree.this)
    return joined.join(tree.args["using"], on=tree.args["on"])


def _of_when(when: exp.When, target: exp.Expr) -> Iterator[exp.Expr]:
    if condition := when.args.get("condition"):
        yield condition
    action = when.args["then"]
    if isinstance(action, exp.Update):
        yield from (_of_target(change, target) for change in action.expressions)
    elif isinstance(action, exp.Insert):
        if isinstance(action.this, exp.Tuple):
            yield from (exp.column(column.this, table=target.alias_or_name) for column in action.this.expressions)
        if isinstance(action.expression, exp.Tuple):
            yield from action.expression.expressions


def _of_target(change: exp.Expr, target: exp.Expr) -> exp.Expr:
    """`column = value`, with the column qualified by the changed table."""
    if isinstance(change, exp.EQ) and isinstance(change.this, exp.Column) and not change.this.table:
        change.this.set("table", exp.to_identifier(target.alias_or_name))
    return change
