"""Metrics of the probability that a model gives to the gold completion, and to ending it.

`loss` is the mean cross entropy of the gold completions' tokens and their end tokens, in nats. It depends on the tokenizer.
`loss_text` (the completions' own tokens) and `loss_end` (the end tokens) are its two parts. `bits_per_byte`, the same sum in
bits over the UTF-8 bytes of the completions, compares models with different tokenizers.
"""

from __future__ import annotations

import math

from fim_core.metrics.metric import Measure, Metric
from fim_core.metrics.rows import CompletedRow, Value


def text_nats(row: CompletedRow) -> Value:
    """Cross entropy of the completion's own tokens, without the end token."""
    nats, end, tokens = row.prediction.nats, row.prediction.end_nats, row.prediction.tokens
    if nats is None or end is None or tokens is None:
        return None
    return 0.0 if tokens == 1 else math.inf if math.isinf(nats) else nats - end


def text_tokens(row: CompletedRow) -> Value:
    """Number of the completion's own tokens, without the end token."""
    return None if text_nats(row) is None or row.prediction.tokens is None else row.prediction.tokens - 1


def end_nats(row: CompletedRow) -> Value:
    """Cross entropy of the end token."""
    return None if text_nats(row) is None else row.prediction.end_nats


RUNAWAY = Metric(
    name="runaway",
    title="Runaway",
    meaning="reaches the limit of new tokens without an end token",
    unit="share",
    over=Measure("runaway", lambda row: not row.prediction.stopped),
    higher_is_better=False,
)
LOSS = Metric(
    name="loss",
    title="Held-out loss",
    meaning="mean cross entropy of the accepted completion and its end token",
    unit="nats/token",
    over=Measure("loss_nats", lambda row: row.prediction.nats),
    per=Measure("loss_tokens", lambda row: row.prediction.tokens),
    higher_is_better=False,
    headline=True,
)
LOSS_TEXT = Metric(
    name="loss_text",
    title="Held-out loss, text",
    meaning="the loss at the tokens of the accepted completion, without its end token",
    unit="nats/token",
    over=Measure("loss_text_nats", text_nats),
    per=Measure("loss_text_tokens", text_tokens),
    higher_is_better=False,
)
LOSS_END = Metric(
    name="loss_end",
    title="Held-out loss, end",
    meaning="the loss at the end token: low if the model knows when to stop",
    unit="nats/token",
    over=Measure("loss_end_nats", end_nats),
    higher_is_better=False,
)
BITS_PER_BYTE = Metric(
    name="bits_per_byte",
    title="Bits per byte",
    meaning="the loss per UTF-8 byte, comparable between tokenizers",
    unit="bits/byte",
    over=Measure("loss_bits", lambda row: None if row.prediction.nats is None else row.prediction.nats / math.log(2)),
    per=Measure("gold_bytes", lambda row: len(row.row.completion.encode(errors="surrogatepass"))),
    higher_is_better=False,
)
