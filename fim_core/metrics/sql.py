"""Metrics of the completed statement as SQL, from what the SQL workers measured.

The workers tokenize, parse, bind and execute; sql_workers/measures.py says which function computes each value. None of them
applies to a row whose prefix and suffix are not known.
"""

from __future__ import annotations

from fim_core.metrics.metric import Measure, Metric


def _measured(name: str) -> Measure:
    """A value of the SQL workers as it is."""
    return Measure(name, lambda row: row.sql.get(name))


_MATCHED = _measured("identifiers_matched")

EXACT_MATCH_SQL = Metric(
    name="exact_match_sql",
    title="Exact match, SQL tokens",
    meaning="the same SQL tokens: white space and the case of keywords are ignored",
    unit="share",
    over=_measured("exact_match_sql"),
    headline=True,
)
PARSES = Metric(
    name="parses",
    title="Parses",
    meaning="sqlglot parses the statement with the completion",
    unit="share",
    over=_measured("parses"),
    headline=True,
)
BINDS = Metric(
    name="binds",
    title="Names resolve (binds)",
    meaning="every table and column is defined in the row's context",
    unit="share",
    over=_measured("binds"),
    headline=True,
)
EXECUTION_MATCH = Metric(
    name="execution_match",
    title="Same result on DuckDB",
    meaning="the query returns the same rows as the accepted one, on generated data",
    unit="share",
    over=_measured("execution_match"),
    headline=True,
)
IDENTIFIER_PRECISION = Metric(
    name="identifier_precision",
    title="Identifier precision",
    meaning="share of the names in the completion that are in the accepted one",
    unit="share",
    over=_MATCHED,
    per=_measured("identifiers_predicted"),
)
IDENTIFIER_RECALL = Metric(
    name="identifier_recall",
    title="Identifier recall",
    meaning="share of the names in the accepted completion that are in the predicted one",
    unit="share",
    over=_MATCHED,
    per=_measured("identifiers_gold"),
)
