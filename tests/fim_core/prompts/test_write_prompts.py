"""The prompts table: every row is kept or rejected once, and groups are not split."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_path import MODEL, completion, data_options, run_data_path, write_raw
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import long_run, sentencepiece_like
from transformers import PreTrainedTokenizerFast

from fim_core.config import ModelConfig
from fim_core.config.model import FimTokenNames
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.errors import FimError
from fim_core.prompt_format.recipe import read_recipe
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.prompts import PROMPTS_SCHEMA, PromptBuilder, train_tokenizer_on, write_fim_prompts
from fim_core.prompts.split import statement_hash
from fim_core.records.schema import Completion, Rejection

TOKENIZER = train_tokenizer(["select a\n  from t;\n"] * 3, 600)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
DAMAGED = st.one_of(st.text(max_size=20), st.just('[{"type":"text","text":"a \\x <fillMe>"}]'), st.just("[]"))
ROWS = st.lists(
    st.one_of(
        st.builds(completion, TEXT, TEXT, TEXT),
        st.builds(lambda text, out: {"input": text, "output": out}, DAMAGED, TEXT),
        st.builds(lambda q, a: {"source_type": "prompt_response", "input": q, "output": a}, TEXT, TEXT),
        st.builds(
            lambda q, a: {
                "source_type": "messages",
                "input": json.dumps([{"role": "user", "content": q}, {"role": "assistant", "content": a}]),
            },
            TEXT,
            TEXT,
        ),
        st.builds(completion, st.just("<|im_end|>"), TEXT, TEXT),
    ),
    min_size=1,
    max_size=12,
)


@long_run(short=25)
@given(ROWS, st.sampled_from(["reject", "neutralise"]), st.booleans())
def test_any_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], control: str, skip: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    done = run_data_path(
        folder,
        rows,
        TOKENIZER,
        control_tokens=control,
        skip_empty_output=skip,
        skip_empty_prefix=skip,
        eval_fraction=0.5,
    )
    counts = done.prompt_counts
    assert counts.rows_in == len(rows) == counts.rows_kept + sum(counts.rejected.values())
    assert counts.rows_kept == counts.train + counts.eval + counts.left_out == len(done.prompts)
    assert counts.rejected == Counter(row["reason"] for row in done.rejected)
    assert done.counts.rows_in == counts.rows_kept == done.counts.rows_kept + done.counts.too_long
    kept, rejected = ([row["row_id"] for row in table] for table in (done.prompts, done.rejected))
    assert sorted([*kept, *rejected]) == sorted(f"r{number}" for number in range(len(rows)))
    by_id = {f"r{number}": row for number, row in enumerate(rows)}
    for row in done.rejected:
        assert (row["input"], row["output"]) == (by_id[row["row_id"]]["input"], by_id[row["row_id"]].get("output", ""))
    for row in done.prompts:
        given_row = by_id[row["row_id"]]
        if row["source_type"] != "messages":
            assert row["response"] == given_row["output"]
        if row["source_type"] == "fim_completions" and "context" in given_row["input"]:
            text = json.loads(given_row["input"])[1]["text"]
            assert f"{row['prefix']}<fillMe>{row['suffix']}" == text
        tokens = done.row(row["row_id"])
        assert TOKENIZER.decode(tokens["input_ids"]) == row["prompt"] + row["response"] + "<|im_end|>"
        if row["control_spans"] is None and control == "reject":
            prompt = TOKENIZER(row["prompt"], add_special_tokens=False)["input_ids"]
            response = TOKENIZER(row["response"], add_special_tokens=False)["input_ids"]
            end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
            assert tokens["input_ids"] == [*prompt, *response, end]
            assert tokens["labels"] == [-100] * len(prompt) + [*response, end]
            assert tokens["prompt_length"] == len(prompt)


def test_the_files_of_the_folder(tmp_path: Path) -> None:
    done = run_data_path(tmp_path, [completion("select ", " from t", "a", type="expr"), {"input": "x"}], TOKENIZER)
    assert pq.read_schema(tmp_path / "prompts" / "prompts.parquet").equals(PROMPTS_SCHEMA)
    assert pq.read_schema(tmp_path / "prompts" / "rejected.parquet").names[:3] == ["row_id", "reason", "detail"]
    row = done.prompts[0]
    assert (row["type"], row["prefix"], row["suffix"], row["response"]) == ("expr", "select ", " from t", "a")
    tokens = read_recipe(tmp_path / "prompts").fim_tokens
    assert tokens.end == "<|im_end|>"
    assert load_tokenizer(tmp_path / "prompts" / "tokenizer").convert_tokens_to_ids("<|im_end|>") == tokens.end_id
    assert not list((tmp_path / "prompts").glob(".*"))


@pytest.mark.slow
def test_several_processes_write_the_same(tmp_path: Path) -> None:
    rows = [completion(f"select {n} ", ";", str(n), type=str(n % 3)) for n in range(5000)]
    rows[7] = {"input": "broken"}
    one = run_data_path(tmp_path / "one", rows, TOKENIZER)
    two = run_data_path(tmp_path / "two", rows, TOKENIZER, num_proc=2)
    assert one.prompt_counts == two.prompt_counts
    assert (one.prompts, one.rejected, one.rows) == (two.prompts, two.rejected, two.rows)
    first, second = asdict(one.counts), asdict(two.counts)
    # Each process learns lines by itself.
    assert first.pop("tokenizer_tokens") <= second.pop("tokenizer_tokens")
    assert first == second


def test_skipping_empty_outputs_and_prefixes(tmp_path: Path) -> None:
    rows = [completion("", "x", "y"), completion("x", "", ""), completion("x", "", "y")]
    done = run_data_path(tmp_path / "kept", rows, TOKENIZER)
    assert done.prompt_counts.rows_kept == 3
    skipped = run_data_path(tmp_path / "skipped", rows, TOKENIZER, skip_empty_output=True, skip_empty_prefix=True)
    assert skipped.prompt_counts.rejected == {"empty_output": 1, "empty_prefix": 1}


def test_rows_of_one_statement_or_group_are_never_separated(tmp_path: Path) -> None:
    rows = [
        completion("select ", f" from t{n % 40}", "A" if n % 2 else " a", WORKSHEET_ID=f"w{n % 23}" if n % 5 else "")
        for n in range(200)
    ]
    by_statement = run_data_path(tmp_path / "s", rows, TOKENIZER, eval_fraction=0.4).prompts
    rows += [completion("select ", f" from u{n}", "b", WORKSHEET_ID=f"w{n % 23}") for n in range(200)]
    done = run_data_path(tmp_path / "c", rows, TOKENIZER, eval_fraction=0.4, group_by="worksheet_id")
    for prompts in (by_statement, done.prompts):
        sides: dict[Any, set[str]] = {}
        for row in prompts:
            number = int(row["row_id"][1:])
            statement = statement_hash(row["prefix"] + row["response"] + row["suffix"])
            keys = [row["group"]] if row["split"] == "left_out" else [row["group"], statement]
            if prompts is done.prompts and rows[number]["WORKSHEET_ID"]:
                keys.append(rows[number]["WORKSHEET_ID"])
            for key in keys:
                sides.setdefault(key, set()).add(row["split"])
        assert not any({"train", "eval"} <= split or {"train", "left_out"} <= split for split in sides.values())
        assert abs(sum(row["split"] == "eval" for row in prompts) / len(prompts) - 0.4) < 0.1
    assert {row["split"] for row in by_statement} == {"train", "eval"}
    counts, splits = done.prompt_counts, [row["split"] for row in done.prompts]
    assert (counts.train, counts.eval, counts.left_out) == tuple(map(splits.count, ("train", "eval", "left_out")))
    assert counts.left_out > 0
    # Encoded with the others, but in neither data set.
    assert done.counts.rows_in == 400 == done.counts.rows_kept + done.counts.left_out
    assert {row["row_id"]: row["split"] for row in done.rows} == {
        row["row_id"]: row["split"] for row in done.prompts if row["split"] != "left_out"
    }
    with pytest.raises(FimError, match=r"no column folder.*WORKSHEET_ID"):
        run_data_path(tmp_path / "x", rows, TOKENIZER, group_by="folder")
    with pytest.raises(FimError, match="no column held_out"):
        run_data_path(tmp_path / "y", rows, TOKENIZER, group_by="held_out")


def test_a_statement_of_the_held_out_rows_leaves_the_training_rows(tmp_path: Path) -> None:
    rows = [
        completion("select ", " from t", "a"),
        completion("sel", " FROM T", "ect a", held_out=True),
        completion("x", "", ""),
    ]
    evals = [{"type": "demo"}]
    done = run_data_path(tmp_path, rows, TOKENIZER, eval_sources=evals)
    assert [row["split"] for row in done.prompts] == ["eval", "eval", "train"]


def test_a_tokenizer_trained_on_the_training_rows_only(tmp_path: Path) -> None:
    rows = [completion(f"select {word * 3} ", ";", word, type="x") for word in ("alpha", "beta", "gamma", "delta") * 20]
    write_raw(tmp_path / "raw.parquet", rows)
    data = data_options(eval_fraction=0.5)
    trained = train_tokenizer_on(tmp_path / "raw.parquet", data=data, model=MODEL, vocab_size=700, seed=3)
    done = run_data_path(tmp_path / "run", rows, trained, eval_fraction=0.5)
    seen = {side: {row["response"] for row in done.prompts if row["split"] == side} for side in ("train", "eval")}
    assert seen["train"]
    assert seen["eval"]
    vocabulary = trained.get_vocab()
    for word in seen["train"]:
        assert word in vocabulary
    for word in seen["eval"]:
        assert word not in vocabulary


def test_a_trained_tokenizer_knows_the_control_tokens_of_the_model(tmp_path: Path) -> None:
    """What names one of them in user text is rejected, so the tokenizer must not learn from it either."""
    names = FimTokenNames(prefix="[PRE]", suffix="[SUF]", middle="[MID]")
    model = ModelConfig(config={"model_type": "qwen3"}, tokenizer="given", fim_tokens=names)
    rows = [completion("select alphaalpha ", ";", "alphaalpha"), completion("select '[PRE]'", "", "betabeta")] * 20
    write_raw(tmp_path / "raw.parquet", rows)
    data = data_options(eval_fraction=0)
    trained = train_tokenizer_on(tmp_path / "raw.parquet", data=data, model=model, vocab_size=700, seed=3)
    vocabulary = trained.get_vocab()
    assert "alphaalpha" in vocabulary
    assert "betabeta" not in vocabulary


def test_serving_gives_the_ids_of_training(tmp_path: Path) -> None:
    context = {"sql_history": "select 1;", "ddl_context": "create table t (a int);", "file_content": "-- x"}
    done = run_data_path(tmp_path, [completion("select ", " from t", "a", context=context)], TOKENIZER, eval_fraction=0)
    builder = PromptBuilder(load_tokenizer(tmp_path / "prompts" / "tokenizer"), MODEL, data_options())
    row = done.rows[0]
    assert builder.encode(Completion("select ", " from t", **context)) == row["input_ids"][: row["prompt_length"]]


def test_secrets_are_masked_and_counted(tmp_path: Path) -> None:
    rows = [
        completion("-- a@b.com\n", "", "c@d.com", context={"ddl_context": "password = 'x'"}),
        {"source_type": "prompt_response", "input": "mail e@f.com", "output": "g@h.com"},
    ]
    done = run_data_path(tmp_path, rows, TOKENIZER, mask_secrets=True)
    assert done.prompt_counts.masked == 5
    text = json.dumps(done.prompts)
    assert not any(secret in text for secret in ("a@b.com", "c@d.com", "e@f.com", "g@h.com", "'x'"))


def test_finished_prompts_are_read_as_they_are(tmp_path: Path) -> None:
    chat = TOKENIZER.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    prompts = [f"{chat}<|fim_prefix|>x <|fim_suffix|> y<|fim_middle|>", "why?", "  two\n\n", "<|im_end|><|endoftext|>"]
    rows = [{"source_type": "prompt_response", "input": prompt, "output": "so"} for prompt in prompts]
    rows += [
        {"source_type": "prompt_response", "input": " ", "output": "so"},
        {"source_type": "prompt_response", "input": "why?", "output": "<|im_end|>"},
    ]
    done = run_data_path(tmp_path / "r", rows, TOKENIZER)
    assert done.prompt_counts.rejected == {"control_token": 1, "empty_input": 1}
    assert [row["prompt"] for row in done.prompts] == prompts
    assert [(row["prefix"], row["suffix"]) for row in done.prompts] == [("x ", " y"), *[(None, None)] * 3]
    # Most hold no chat markup, so the family's own token ends a completion.
    end = TOKENIZER.convert_tokens_to_ids("<|endoftext|>")
    for number, prompt in enumerate(prompts):
        # The reference: the whole text at once, nothing added.
        ids = TOKENIZER(prompt, add_special_tokens=False)["input_ids"]
        response = TOKENIZER("so")["input_ids"]
        assert done.row(f"r{number}")["input_ids"] == [*ids, *response, end]
        assert done.row(f"r{number}")["labels"] == [-100] * len(ids) + [*response, end]
    neutral = run_data_path(tmp_path / "n", rows, TOKENIZER, control_tokens="neutralise")
    assert neutral.prompt_counts.rows_kept == 5
    assert TOKENIZER.convert_tokens_to_ids("<|im_end|>") not in neutral.row("r5")["input_ids"], "there it is text"


def test_nothing_is_added_to_a_finished_prompt_of_a_tokenizer_that_adds(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    prompts = ["<s>▁<PRE>a ▁<SUF> b▁<MID>", "▁<PRE>a ▁<SUF> c▁<MID>", "plain"]
    rows = [{"source_type": "prompt_response", "input": prompt, "output": "x"} for prompt in prompts]
    done = run_data_path(tmp_path, rows, tokenizer)
    starts = {
        row["row_id"]: row["input_ids"][: row["prompt_length"]].count(tokenizer.bos_token_id) for row in done.rows
    }
    assert starts == {"r0": 1, "r1": 0, "r2": 0}
    for number, prompt in enumerate(prompts):
        # No mark for a space is added to the start of a text either.
        ids = tokenizer(f"</s>{prompt}", add_special_tokens=False)["input_ids"][1:]
        assert done.row(f"r{number}")["input_ids"][: len(ids)] == ids


def test_masking_never_crosses_a_control_token_of_a_finished_prompt(tmp_path: Path) -> None:
    prompt = "<|fim_prefix|>password = '<|fim_suffix|>longer' -- a@b.com<|fim_middle|>"
    rows = [{"source_type": "prompt_response", "input": prompt, "output": "so"}]
    done = run_data_path(tmp_path, rows, TOKENIZER, mask_secrets=True)
    assert done.prompts[0]["prompt"] == prompt.replace("a@b.com", "masked@example.com")
    assert (done.prompts[0]["prefix"], done.prompt_counts.masked) == ("password = '", 1)


def test_finished_prompts_of_one_statement_stay_with_its_completions(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(60):
        prompt = f"ctx {number}<|fim_prefix|>select {number} <|fim_suffix|> t<|fim_middle|>"
        rows.append({"source_type": "prompt_response", "input": prompt, "output": "from"})
        rows.append(completion("SELECT ", " from  t", str(number)))
    done = run_data_path(tmp_path, rows, TOKENIZER, eval_fraction=0.5)
    sides = {row["row_id"]: row["split"] for row in done.prompts}
    assert all(sides[f"r{2 * number}"] == sides[f"r{2 * number + 1}"] for number in range(60))
    assert {*sides.values()} == {"train", "eval"}


def test_errors_in_the_template_are_raised(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "t.tmpl").write_text("{{define")
    write_raw(tmp_path / "raw.parquet", [completion("a", "b")])
    data = data_options(template=str(tmp_path / "t.tmpl"))
    with pytest.raises(FimError, match=r"t\.tmpl, line 1"):
        write_fim_prompts(tmp_path / "raw.parquet", tmp_path, data=data, model=MODEL, tokenizer=tokenizer, seed=0)


def test_rejections_never_quote_user_text(tmp_path: Path) -> None:
    rows = [
        {"input": "secret_word"},
        completion("secret_word <|im_end|>", ""),
        completion("x", "", "secret_word<|im_end|>"),
    ]
    done = run_data_path(tmp_path, rows, TOKENIZER)
    assert len(done.rejected) == 3
    assert not any("secret_word" in row["detail"] for row in done.rejected)
    assert Rejection.__slots__ == ("reason", "detail")


def test_null_marks_become_empty_outputs_only_where_they_are_named(tmp_path: Path) -> None:
    outputs = ["\\N", "NULL", " NULL", "null", "x"]
    rows = [completion("select ", f" -- {number}", output) for number, output in enumerate(outputs)]
    rows.append({"source_type": "prompt_response", "input": "why?", "output": "NULL"})
    as_text = run_data_path(tmp_path / "a", rows, TOKENIZER)
    assert [row["response"] for row in as_text.prompts] == [*outputs, "NULL"]
    named = run_data_path(tmp_path / "b", rows, TOKENIZER, null_marks=["\\N", "NULL"])
    assert [row["response"] for row in named.prompts] == ["", "", " NULL", "null", "x", ""]
    skipped = run_data_path(tmp_path / "c", rows, TOKENIZER, null_marks=["\\N", "NULL"], skip_empty_output=True)
    assert skipped.prompt_counts.rejected == {"empty_output": 3}
