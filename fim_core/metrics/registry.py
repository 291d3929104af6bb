"""The metrics of a report: how each is summed up over rows.

Every metric is a ratio of two sums over rows, so that one bootstrap serves them all: a mean is a sum per row that the
measure applies to; precision is matches per prediction made.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One figure of a report: sum of the column `over`, divided by the sum of the column `per`.

    Attributes:
        name: key in reports and gate rules.
        title: for people.
        meaning: what it says, in a few words; the functions behind it define it exactly.
        unit: `share` (0 to 1), `characters`, `nats/token`, `bits/byte`.
        over: column of the scores in the numerator; rows where it is missing are left out.
        per: column in the denominator; None counts rows, which makes it a mean.
        higher_is_better: direction of progress.
        headline: shown where space is short.
    """

    name: str
    title: str
    meaning: str
    unit: str
    over: str
    per: str | None = None
    higher_is_better: bool = True
    headline: bool = False


METRICS = (
    Metric("exact_match", "Exact match", "every character is the accepted one", "share", "exact_match", headline=True),
    Metric("exact_match_sql", "Exact match, SQL tokens", "the same SQL: keyword case and white space do not count",
           "share", "exact_match_sql", headline=True),
    Metric("edit_similarity", "Edit similarity", "1 - Levenshtein distance / length of the longer text", "share",
           "edit_similarity", headline=True),
    Metric("first_line_match", "First line matches", "what an editor shows of it on one line is right", "share",
           "first_line_match"),
    Metric("prefix_match_chars", "Right characters", "mean number of characters before the first wrong one",
           "characters", "prefix_match_chars"),
    Metric("prefix_match_share", "Right characters, share", "of the accepted text, before the first wrong character",
           "share", "prefix_match_chars", "gold_chars"),
    Metric("parses", "Parses", "sqlglot understands the statement with the completion in it", "share", "parses",
           headline=True),
    Metric("binds", "Names resolve (binds)", "every table and column is defined in the row's context", "share",
           "binds", headline=True),
    Metric("execution_match", "Same result on DuckDB", "the query returns what the accepted one returns, on made-up rows",
           "share", "execution_match", headline=True),
    Metric("identifier_precision", "Identifier precision", "of the names that it writes, those that were accepted",
           "share", "identifiers_matched", "identifiers_predicted"),
    Metric("identifier_recall", "Identifier recall", "of the names that were accepted, those that it writes", "share",
           "identifiers_matched", "identifiers_gold"),
    Metric("abstention_precision", "Abstention precision", "of the completions left empty, those where nothing was "
           "missing", "share", "both_empty", "predicted_empty", headline=True),
    Metric("abstention_recall", "Abstention recall", "of the places where nothing was missing, those left empty",
           "share", "both_empty", "gold_empty", headline=True),
    Metric("suffix_repetition", "Repeats the suffix", "writes again what stands right of the cursor", "share",
           "repeats_suffix", higher_is_better=False),
    Metric("runaway", "Runs away", "does not end by itself within the limit of tokens", "share", "runaway",
           higher_is_better=False),
    Metric("loss", "Held-out loss", "mean cross entropy of the accepted text's tokens and its end", "nats/token",
           "loss_nats", "loss_tokens", higher_is_better=False, headline=True),
    Metric("loss_text", "Held-out loss, text", "the loss at the accepted text's own tokens", "nats/token",
           "loss_text_nats", "loss_text_tokens", higher_is_better=False),
    Metric("loss_end", "Held-out loss, end", "the loss at the end token: low where the model knows when to stop",
           "nats/token", "loss_end_nats", higher_is_better=False),
    Metric("bits_per_byte", "Bits per byte", "the same loss over the UTF-8 bytes of the text, whatever the tokenizer",
           "bits/byte", "loss_bits", "gold_bytes", higher_is_better=False),
)  # fmt: skip
"""All metrics, in the order of a report.

- `abstention_precision`: of the completions left empty, those where nothing was missing; `abstention_recall`: of the
  places where nothing was missing, those left empty. Empty means nothing but white space.
- `runaway`: generation did not end by itself within `max_new_tokens`.
- `loss`: mean cross entropy of the tokens of held-out completions and their end token, in nats. It depends on the
  tokenizer. `loss_text` and `loss_end` are its two parts: the completions' own tokens, and the end tokens alone.
  `bits_per_byte` (the same sum in bits, over the UTF-8 bytes of the completions) compares between them.
"""

BY_NAME = {metric.name: metric for metric in METRICS}
