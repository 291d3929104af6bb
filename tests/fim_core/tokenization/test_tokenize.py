"""The tokenized data set: labels, limits, counts, and format on disk."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_path import MODEL, completion, data_options, run_data_path, write_raw
from small_tokenizers import byte_level, sentencepiece_like
from tokenizer_builds import Flags, made
from tokenizers import Tokenizer, normalizers

from fim_core.config import ModelConfig
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.prompts import write_fim_prompts
from fim_core.records.sources import write_raw_completions
from fim_core.tokenization import load_rows, tokenize_prompts
from fim_core.tokenization.encoder import TextEncoder

TOKENIZER = train_tokenizer(["select a\n  from t;\n"] * 3, 600)
ROWS = [completion(f"select {n}", " from t;", "x" * n, type="ab"[n % 2]) for n in range(20)]


def test_labels_are_the_response_and_the_end(tmp_path: Path) -> None:
    done = run_data_path(tmp_path, [completion("select ", " from t", "a, b"), completion("x", "", "")], TOKENIZER)
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    for row, response in (("r0", "a, b"), ("r1", "")):
        answer = TOKENIZER(response, add_special_tokens=False)["input_ids"]
        found = done.row(row)
        assert found["labels"][found["prompt_length"] :] == [*answer, end]
        assert set(found["labels"][: found["prompt_length"]]) == {-100}
        assert found["input_ids"][found["prompt_length"] :] == [*answer, end]


def test_all_tokens_are_trained_on_without_masking(tmp_path: Path) -> None:
    masked = run_data_path(tmp_path / "a", ROWS, TOKENIZER)
    unmasked = run_data_path(tmp_path / "b", ROWS, TOKENIZER, mask_inputs=False)
    assert all(row["labels"] == row["input_ids"] for row in unmasked.rows)
    assert [row["prompt_length"] for row in unmasked.rows] == [row["prompt_length"] for row in masked.rows]
    assert unmasked.counts.trained_tokens == unmasked.counts.tokens


def test_long_rows_are_rejected_whole_and_never_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    everything = run_data_path(tmp_path / "all", ROWS, TOKENIZER)
    lengths = {row["row_id"]: len(row["input_ids"]) for row in everything.rows}
    limit = int(np.median(list(lengths.values())))
    with caplog.at_level(logging.WARNING):
        done = run_data_path(tmp_path / "some", ROWS, TOKENIZER, max_length=limit)
    assert {row["row_id"]: len(row["input_ids"]) for row in done.rows} == {
        row: length for row, length in lengths.items() if length <= limit
    }
    assert {row["row_id"]: row["detail"] for row in done.too_long} == {
        row: f"{length} tokens, {limit} allowed" for row, length in lengths.items() if length > limit
    }
    assert {row["reason"] for row in done.too_long} == {"too_long"}
    assert done.counts.too_long == len(done.too_long) > 0
    assert not caplog.records

    with caplog.at_level(logging.WARNING):
        told = run_data_path(tmp_path / "told", ROWS, TOKENIZER, max_length=limit, filter_samples=False)
    assert [record.getMessage() for record in caplog.records] == [
        f"Row {row['row_id']} is left out: {row['detail']}." for row in told.too_long
    ]
    assert told.rows == done.rows


def test_counts_are_those_of_the_rows(tmp_path: Path) -> None:
    done = run_data_path(tmp_path, ROWS, TOKENIZER, eval_fraction=0.3)
    counts = done.counts
    lengths = [len(row["input_ids"]) for row in done.rows]
    assert counts.tokens == sum(lengths)
    assert counts.trained_tokens == sum(label != -100 for row in done.rows for label in row["labels"])
    assert (counts.train, counts.eval) == tuple(sum(r["split"] == s for r in done.rows) for s in ("train", "eval"))
    assert counts.eval > 0
    assert set(counts.lengths) == {"a", "b"}
    assert counts.lengths["a"]["rows"] == 10
    a = [len(row["input_ids"]) for row in done.rows if row["type"] == "a"]
    assert counts.lengths["a"]["p50"] == np.median(a)
    assert counts.lengths["a"]["p100"] == max(a)
    assert sum(counts.histogram.values()) == counts.rows_kept
    assert {int(power) for power in counts.histogram} == {2 ** int(np.ceil(np.log2(length))) for length in lengths}
    assert 0 < counts.tokenizer_tokens < counts.tokens


def test_rows_are_memory_mapped_for_packing(tmp_path: Path) -> None:
    done = run_data_path(tmp_path, ROWS, TOKENIZER, eval_fraction=0.3)
    for split in ("train", "eval"):
        rows = load_rows(tmp_path / "tokens", split)
        expected = [row for row in done.rows if row["split"] == split]
        assert list(rows.row_ids) == [row["row_id"] for row in expected]
        assert [rows.tokens_of(n).tolist() for n in range(len(rows))] == [row["input_ids"] for row in expected]
        assert [rows.labels_of(n).tolist() for n in range(len(rows))] == [row["labels"] for row in expected]


def test_shards_and_an_empty_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fim_core.tokenization.shards._SHARD_BYTES", 1000)
    monkeypatch.setattr("fim_core.tokenization.write._BATCH_ROWS", 5)
    one = run_data_path(tmp_path / "a", ROWS, TOKENIZER, eval_fraction=0)
    assert len(list((tmp_path / "a" / "tokens" / "dataset" / "train").glob("*.arrow"))) > 1
    assert len(one.rows) == len(ROWS)
    assert len(load_rows(tmp_path / "a" / "tokens", "eval")) == 0
    saved = datasets.load_from_disk(str(tmp_path / "a" / "tokens" / "dataset"))
    saved["train"].save_to_disk(str(tmp_path / "again"))
    again = datasets.load_from_disk(str(tmp_path / "again"))
    assert again.to_list() == saved["train"].to_list()
    assert again.features == saved["train"].features


def test_a_dataset_without_any_row_loads(tmp_path: Path) -> None:
    done = run_data_path(tmp_path, ROWS, TOKENIZER, max_length=16)
    assert (done.counts.rows_kept, done.counts.too_long, done.rows) == (0, len(ROWS), [])


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        run_data_path(tmp_path / name, ROWS, TOKENIZER)
    files = [sorted(path for path in (tmp_path / name / "tokens").rglob("*") if path.is_file()) for name in "ab"]
    assert [path.relative_to(tmp_path / "a") for path in files[0]] == [p.relative_to(tmp_path / "b") for p in files[1]]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_a_tokenizer_with_a_mark_for_spaces(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    done = run_data_path(tmp_path, ROWS, tokenizer, eval_fraction=0)
    for prompt in done.prompts:
        row = done.row(prompt["row_id"])
        ids = tokenizer(prompt["prompt"], add_special_tokens=False)["input_ids"]
        assert row["input_ids"][: row["prompt_length"]] == ids


def test_a_sample_that_disagrees_is_cut_at_control_tokens_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer whose probes agree though its lines do not: here one that is told to cut lines and must not."""
    tokenizer = byte_level(["<|end|>"], eos="<|end|>")
    monkeypatch.setattr(TextEncoder, "_finest", lambda self: "line")
    rows = [completion("a\n  b\n\nc", "\n\nd", "e")]
    done = run_data_path(tmp_path, rows, tokenizer, eval_fraction=0)
    assert "between control tokens" in done.counts.notice
    ids = tokenizer(done.prompts[0]["prompt"], add_special_tokens=False)["input_ids"]
    assert done.rows[0]["input_ids"][: len(ids)] == ids


def test_rows_whose_text_the_tokenizer_changes_are_counted(tmp_path: Path) -> None:
    tokenizer = byte_level(["<|end|>"], eos="<|end|>")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    texts = ["e\u0301", "\u00e9", "e", " e\u0301 ", "x" * 200 + "e\u0301"]
    done = run_data_path(tmp_path, [completion("a", "b", text) for text in texts], tokenizer, max_length=100)
    assert (done.counts.changed, done.counts.too_long) == (2, 1)
    assert pq.read_table(tmp_path / "tokens" / "changed.parquet").column("row_id").to_pylist() == ["r0", "r3"]


def test_stray_control_tokens_in_ids_are_rejected(tmp_path: Path) -> None:
    """The last line: a prompts table that holds what should have been rejected. A finished prompt is trusted."""
    flags = Flags()
    tokenizer = made("Unigram", "none", "none", flags)
    rows = [
        completion("a", "b", "x"),
        completion("a", "b", "x"),
        {"source_type": "prompt_response", "input": "a</s>b", "output": "x"},
        {"source_type": "prompt_response", "input": "a</s>b", "output": "x"},
    ]
    run_data_path(tmp_path, rows, tokenizer, eval_fraction=0)
    table = pq.read_table(tmp_path / "prompts" / "prompts.parquet").to_pylist()
    for place, name, text in ((0, "response", "x </s>"), (1, "prompt", "a\u200b</s>"), (2, "response", "</s>")):
        table[place][name] = text
    schema = pq.read_schema(tmp_path / "prompts" / "prompts.parquet")
    # As if its control tokens were known to be none.
    table[1]["control_spans"] = []
    pq.write_table(pa.Table.from_pylist(table, schema=schema), tmp_path / "prompts" / "prompts.parquet")
    counts = tokenize_prompts(tmp_path / "prompts", tmp_path / "again", data=data_options(eval_fraction=0))
    rejected = pq.read_table(tmp_path / "again" / "rejected.parquet").to_pylist()
    assert [(row["row_id"], row["reason"]) for row in rejected] == [(f"r{n}", "control_token") for n in (0, 1, 2)]
    assert (counts.rows_kept, counts.control_token, counts.too_long) == (1, 3, 0)


@pytest.mark.slow
def test_real_rows_with_a_real_tokenizer(tmp_path: Path) -> None:
    """Set FIM_REAL_CSV (an export) and FIM_REAL_TOKENIZER (a folder): every row's ids equal those of the whole."""
    export, place = os.environ.get("FIM_REAL_CSV"), os.environ.get("FIM_REAL_TOKENIZER")
    if not export or not place:
        pytest.skip("FIM_REAL_CSV and FIM_REAL_TOKENIZER are not set")
    tokenizer = load_tokenizer(place)
    data = data_options(
        sources=[{"type": "fim_completions", "name_or_path": export}], eval_fraction=0, max_length=10**6
    )
    write_raw_completions(data, tmp_path / "raw.parquet")
    model = ModelConfig(name_or_path=place)
    counts = write_fim_prompts(
        tmp_path / "raw.parquet", tmp_path / "prompts", data=data, model=model, tokenizer=tokenizer, seed=0
    )
    tokenize_prompts(tmp_path / "prompts", tmp_path / "tokens", data=data)
    assert counts.rows_in == counts.rows_kept + sum(counts.rejected.values())
    prompts = pq.read_table(tmp_path / "prompts" / "prompts.parquet").to_pylist()
    rows = load_rows(tmp_path / "tokens", "train")
    lengths = datasets.load_from_disk(str(tmp_path / "tokens" / "dataset"))["train"]["prompt_length"][:]
    assert len(rows) == len(prompts) == counts.rows_kept > 0
    for number, row in enumerate(prompts):
        ids = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        assert rows.tokens_of(number)[: len(ids)].tolist() == ids
        assert rows.tokens_of(number)[len(ids) : -1].tolist() == answer
        assert lengths[number] == len(ids)


def test_the_saved_tokenizer_is_the_one_that_encoded(tmp_path: Path) -> None:
    tokenizer = byte_level(["<|end|>"], eos="<|end|>")
    write_raw(tmp_path / "raw.parquet", ROWS)
    write_fim_prompts(tmp_path / "raw.parquet", tmp_path, data=data_options(), model=MODEL, tokenizer=tokenizer, seed=0)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    for row in pq.read_table(tmp_path / "prompts.parquet").to_pylist():
        ids = saved.encode(row["prompt"], add_special_tokens=False).ids
        loaded = load_tokenizer(tmp_path / "tokenizer")
        assert ids == loaded(row["prompt"], add_special_tokens=False)["input_ids"]
