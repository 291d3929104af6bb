"""Writing the tokenized data set: token ids and labels, never truncated, streamed in batches."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fim_core.batch_cache import BatchCache
from fim_core.batches import by_export
from fim_core.config import DataConfig
from fim_core.folders.prompts import PromptsFolder
from fim_core.folders.tokenized import TokenizedFolder
from fim_core.parallel import ordered_map
from fim_core.records.schema import Reason
from fim_core.tokenization.batch import DATASET_SCHEMA, REJECTED_SCHEMA, SPLITS, BatchTokenizer, TokenizedBatch
from fim_core.tokenization.encoder import Granularity, TextEncoder
from fim_core.tokenization.shards import SplitWriter

logger = logging.getLogger(__name__)

QUANTILES = (0.5, 0.9, 0.99, 1.0)

_CHANGED_SCHEMA = pa.schema([pa.field("row_id", pa.string())])

_BATCH_ROWS = 1024
_SAMPLED_GROUPS, _SAMPLED_ROWS = 8, 16
_MOST_TYPES = 50


@dataclass(frozen=True)
class TokenizedCounts:
    """Counts: rows_in = rows_kept + too_long + control_token + left_out.

    Attributes:
        control_token: rows whose user text is encoded as a control token.
        tokens: of all kept rows; trained_tokens: those that are trained on.
        train, eval: kept rows of each split; left_out: rows that are neither trained on nor held out.
        neutralised: rows with control tokens in user text, encoded as ordinary text.
        changed: rows whose response is not restored by decoding its tokens, because the tokenizer normalises text or lacks
            characters.
        lengths: by type of completion, most frequent first 50: rows, and the quantiles QUANTILES of their tokens.
        histogram: rows by the power of two that their length does not exceed.
        encoded: rows that were encoded; the others came from the cache.
        tokenizer_tokens: tokens produced by the tokenizer; the others are of repeated lines.
        granularity: the units that were encoded independently; serving has to split prompts in the same way.
        notice: how texts were split into pieces.
    """

    rows_in: int
    rows_kept: int
    too_long: int
    control_token: int
    tokens: int
    trained_tokens: int
    train: int
    eval: int
    left_out: int
    neutralised: int
    changed: int
    lengths: dict[str, dict[str, float]]
    histogram: dict[str, int]
    encoded: int
    tokenizer_tokens: int
    granularity: Granularity
    notice: str


def tokenize_prompts(
    prompts: Path, output: Path, *, data: DataConfig, cache: BatchCache | None = None
) -> TokenizedCounts:
    """Encode every row of a prompts folder; labels follow from lengths, never from searching.

    A row is `prompt ids + response ids + end`; its labels are IGNORE_INDEX over the prompt and the ids themselves over the
    rest, or everywhere with `mask_inputs: false`. Rows longer than `max_length` are rejected as `too_long`, and with
    `filter_samples: false` also reported one by one as warnings.

    Writes into the folder `output`: `dataset/` (a `datasets.DatasetDict` with train and eval, DATASET_SCHEMA),
    `rejected.parquet`, and `changed.parquet` (row_id), the rows that `TokenizedCounts.changed` counts.

    Args:
        prompts: folder that `write_fim_prompts` wrote.
        cache: of tokenized batches; keyed by options and code. The tokenizer is added to its keys.
    """
    output.mkdir(parents=True, exist_ok=True)
    source = pq.ParquetFile(PromptsFolder(prompts).rows)
    worker = BatchTokenizer(prompts, data, False, cache)
    sample = _sample(source)
    falls_back = not all(map(worker.encoder.lines_agree, sample))
    if falls_back:
        worker = BatchTokenizer(prompts, data, True, cache)
        logger.warning("This tokenizer does not encode lines independently: text is cut at control tokens only.")
    if others := sum(not worker.encoder.agrees(text) for text in sample):
        logger.warning(
            "This tokenizer encodes %d of %d sampled prompts differently as one text, since it changes the text around "
            "control tokens. Send the tokens of PromptBuilder.encode to a server, not text.",
            others,
            len(sample),
        )
    totals = _Totals()
    files = TokenizedFolder(output)
    writers = {split: SplitWriter(files.split(split), DATASET_SCHEMA, split) for split in SPLITS}
    with (
        pq.ParquetWriter(files.rejected, REJECTED_SCHEMA, compression="zstd") as rejected,
        pq.ParquetWriter(files.changed, _CHANGED_SCHEMA, compression="zstd") as changed,
    ):
        batches = by_export(source.iter_batches(_BATCH_ROWS), _BATCH_ROWS)
        make, arguments = (
            (lambda: worker, ()) if data.num_proc == 1 else (BatchTokenizer, (prompts, data, falls_back, cache))
        )
        for result in ordered_map(make, arguments, batches, num_proc=data.num_proc):
            for split, rows in result.kept.items():
                writers[split].write(rows)
            rejected.write_table(result.rejected)
            changed.write_batch(pa.record_batch([result.changed], schema=_CHANGED_SCHEMA))
            totals.add(result)
            if not data.filter_samples:
                _warn_of(result.rejected)
    for writer in writers.values():
        writer.close()
    from datasets.config import DATASETDICT_JSON_FILENAME  # slow, and models are served without it

    (files.dataset / DATASETDICT_JSON_FILENAME).write_text(json.dumps({"splits": list(SPLITS)}))
    return totals.counts(
        source.metadata.num_rows, {split: writer.rows for split, writer in writers.items()}, worker.encoder
    )


@dataclass
class _Totals:
    """Totals over all batches; some 4 bytes a row for the quantiles."""

    lengths: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    too_long: int = 0
    left_out: int = 0
    trained_tokens: int = 0
    control_token: int = 0
    neutralised: int = 0
    changed: int = 0
    encoded: int = 0
    tokenizer_tokens: int = 0

    def add(self, result: TokenizedBatch) -> None:
        types = np.array(result.types, dtype=object)
        for kind in sorted(set(result.types)):
            self.lengths[kind].append(result.lengths[types == kind])
        reasons = Counter(result.rejected.column("reason").to_pylist())
        self.too_long += reasons[Reason.TOO_LONG]
        self.control_token += reasons[Reason.CONTROL_TOKEN]
        self.left_out += result.left_out
        self.trained_tokens += result.trained_tokens
        self.neutralised += result.neutralised
        self.changed += len(result.changed)
        self.encoded += result.encoded
        self.tokenizer_tokens += result.tokenizer_tokens

    def counts(self, rows_in: int, rows: dict[str, int], encoder: TextEncoder) -> TokenizedCounts:
        by_type = {kind: np.concatenate(parts) for kind, parts in self.lengths.items()}
        everything = np.concatenate([np.empty(0, np.int32), *by_type.values()])
        powers = Counter(np.ceil(np.log2(everything)).astype(int).tolist())
        largest = sorted(by_type, key=lambda kind: -len(by_type[kind]))[:_MOST_TYPES]
        return TokenizedCounts(
            rows_in=rows_in,
            rows_kept=len(everything),
            too_long=self.too_long,
            control_token=self.control_token,
            tokens=int(everything.sum(dtype=np.int64)),
            trained_tokens=self.trained_tokens,
            train=rows["train"],
            eval=rows["eval"],
            left_out=self.left_out,
            neutralised=self.neutralised,
            changed=self.changed,
            lengths={kind: _summary(by_type[kind]) for kind in sorted(largest)},
            histogram={str(2**power): powers[power] for power in sorted(powers)},
            encoded=self.encoded,
            tokenizer_tokens=self.tokenizer_tokens,
            granularity=encoder.granularity,
            notice=encoder.notice,
        )


def _summary(lengths: np.ndarray) -> dict[str, float]:
    quantiles = np.quantile(lengths, QUANTILES)
    return {"rows": len(lengths)} | {
        f"p{round(100 * level)}": float(value) for level, value in zip(QUANTILES, quantiles, strict=True)
    }


def _sample(source: pq.ParquetFile) -> list[str]:
    """A sample of prompts without control spans, from all over the table."""
    groups = source.num_row_groups
    chosen = sorted({round(number) for number in np.linspace(0, groups - 1, min(groups, _SAMPLED_GROUPS))})
    texts: list[str] = []
    for group in chosen:
        # Only the start of each group is decoded.
        batch = next(source.iter_batches(_SAMPLED_ROWS, row_groups=[group], columns=["prompt", "control_spans"]))
        texts += batch.filter(batch.column("control_spans").is_null()).column("prompt").to_pylist()
    return texts


def _warn_of(rejected: pa.Table) -> None:
    for row_id, detail in zip(
        rejected.column("row_id").to_pylist(), rejected.column("detail").to_pylist(), strict=True
    ):
        logger.warning("Row %s is left out: %s.", row_id, detail)
