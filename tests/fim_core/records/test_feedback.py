"""Columns with what users did: which rows are trained on, and what is counted."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections import Counter, defaultdict
from dataclasses import astuple
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_path import MODEL
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_tokenizers import long_run
from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, Source
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.errors import FimError
from fim_core.metrics.text import edit_similarity
from fim_core.prompts import PromptCounts, write_fim_prompts
from fim_core.prompts.feedback_metrics import (
    ActionCounts,
    FeedbackMetrics,
    RejectedGroup,
    measure_feedback,
    retained,
    texts_rejected_most,
)
from fim_core.records.feedback import text_to_train_on, unified
from fim_core.records.sources import RawCounts, digest_sources, write_raw_completions

TOKENIZER = train_tokenizer(["select a\n  from t;\n"] * 3, 600)
INPUT = json.dumps([{"type": "text", "text": "select <fillMe>"}])
ALL = {"shown": "SHOWN", "action": "ACTION", "kept": "KEPT"}
LOG = {**ALL, "id": "ID"}

Row = dict[str, str]


def data_of(path: Path, feedback: dict[str, str] | None, **options: Any) -> DataConfig:
    source = {"name_or_path": str(path), **({"feedback": feedback} if feedback else {})}
    return DataConfig.model_validate({"sources": [source], **options})


def write_csv(path: Path, rows: list[Row], columns: tuple[str, ...]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)


def prepare(
    folder: Path, data: DataConfig, tokenizer: PreTrainedTokenizerFast = TOKENIZER
) -> tuple[RawCounts, PromptCounts, list[dict[str, Any]], dict[str, Any]]:
    """Counts, the raw rows, and the response or the reason of each row_id."""
    raw = write_raw_completions(data, folder / "raw.parquet")
    prompts = write_fim_prompts(
        folder / "raw.parquet", folder / "prompts", data=data, model=MODEL, tokenizer=tokenizer, seed=1
    )
    kept = pq.read_table(folder / "prompts/prompts.parquet").to_pylist()
    rejected = pq.read_table(folder / "prompts/rejected.parquet").to_pylist()
    outcomes = {row["row_id"]: ("trained on", row["response"]) for row in kept}
    outcomes |= {row["row_id"]: ("rejected", row["reason"]) for row in rejected}
    assert len(outcomes) == len(kept) + len(rejected) == prompts.rows_in
    return raw, prompts, pq.read_table(folder / "raw.parquet").to_pylist(), outcomes


TEXTS = st.text("ab ;", max_size=4)
FEEDBACK_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "TYPE": st.sampled_from(["x", "y"]),
            "INPUT": st.sampled_from([INPUT, INPUT, INPUT, "damaged"]),
            "OUTPUT": TEXTS,
            "SHOWN": st.sampled_from(["", "true", "FALSE", " Yes ", "0", "maybe"]),
            "ACTION": st.sampled_from(["", "accepted", "Rejected", " EDITED", "typed", "NULL"]),
            "KEPT": st.one_of(TEXTS, st.just("NULL")),
            "MODEL": st.sampled_from(["", "NULL", "v1", "v2"]),
        }
    ),
    min_size=1,
    max_size=8,
)


def expected(row: Row, mapped: set[str]) -> tuple[str, str]:
    """The table of `fim_core.records.feedback`, row by row, and then what any row without an INPUT is."""
    words = {name: " ".join(row[name].lower().split()).replace("null", "") for name in ("SHOWN", "ACTION")}
    shown = {"yes": True, "true": True, "false": False, "0": False, "": None, "maybe": "?"}[words["SHOWN"]]
    if "shown" not in mapped:
        shown = None
    kept = row["KEPT"] if "kept" in mapped and row["KEPT"] != "NULL" else ""
    text = row["OUTPUT"]
    match words["ACTION"] if "action" in mapped else None:
        case _ if shown == "?":
            return "rejected", "unknown_feedback"
        case "typed":
            return "rejected", "unknown_feedback"
        case "accepted" | "rejected" if shown is False:
            return "rejected", "unknown_feedback"
        case "rejected":
            return "rejected", "rejected_by_user"
        case "edited" if not kept:
            return "rejected", "no_kept_text"
        case "edited":
            text = kept
        case "" if shown:
            return "rejected", "no_action"
    return ("rejected", "invalid_json") if row["INPUT"] == "damaged" else ("trained on", text)


VALUES = {
    "SHOWN": ("", "true", "FALSE", " Yes ", "0", "maybe"),
    "ACTION": ("", "accepted", "Rejected", " EDITED", "typed", "NULL"),
    "KEPT": ("", "k", "NULL"),
}


def test_the_table_of_what_is_trained_on() -> None:
    for mapping in MAPPINGS:
        for values in product(*VALUES.values()):
            row = {"INPUT": INPUT, "OUTPUT": "o", **dict(zip(VALUES, values, strict=True))}
            columns = {key: unified(key, pa.array([row[name]]))[0].as_py() for key, name in mapping.items()}
            found = text_to_train_on(
                "o", *(columns.get(key) for key in ("shown", "action", "kept")), None, null_marks=["NULL"]
            )
            outcome = ("trained on", found) if isinstance(found, str) else ("rejected", str(found.reason))
            assert outcome == expected(row, set(mapping)), (mapping, row)


MAPPINGS = [
    {key: name for key, name in ALL.items() if key in keys}
    for keys in product(*((key, None) for key in ALL))
    if any(keys)
]


@long_run(short=10)
@given(FEEDBACK_ROWS, st.sampled_from([*MAPPINGS, *({**m, "model": "MODEL"} for m in MAPPINGS)]), st.booleans())
def test_every_row_is_in_exactly_one_class(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], mapping: dict[str, str], as_parquet: bool
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    path = folder / ("rows.parquet" if as_parquet else "rows.csv")
    if as_parquet:
        # Columns of a database: null for unknown.
        pq.write_table(pa.Table.from_pylist([{k: v or None for k, v in row.items()} for row in rows]), path)
    else:
        write_csv(path, rows, tuple(rows[0]))
    raw, counts, table, outcomes = prepare(folder, data_of(path, mapping, null_marks=["NULL"]))
    assert raw.rows == counts.rows_in == len(rows) == counts.rows_kept + sum(counts.rejected.values())
    assert [outcomes[row["row_id"]] for row in table] == [expected(row, set(mapping)) for row in rows]
    assert counts.rejected == Counter(text for outcome, text in outcomes.values() if outcome == "rejected")
    assert [(row["output"], row["kept"]) for row in table] == [
        (row["OUTPUT"], row["KEPT"] if "kept" in mapping else None) for row in rows
    ]
    assert rounded(counts.feedback) == rounded(reference_metrics(table))


def rounded(metrics: FeedbackMetrics | None) -> Any:
    """Every value, floats to 9 digits."""
    return json.loads(json.dumps(astuple(metrics) if metrics else None), parse_float=lambda text: round(float(text), 9))


def reference_metrics(table: list[dict[str, Any]]) -> FeedbackMetrics:
    """The metrics row by row, with NULL as a null mark."""
    measured = [row for row in table if row["shown"] or row["action"] or row["kept"]]
    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    by_model: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in measured:
        by_type[row["type"]].append(row)
        if row["model_version"] not in (None, "", "NULL"):
            by_model[row["model_version"]].append(row)

    def actions(rows: list[dict[str, Any]]) -> Counter[str]:
        known = ("accepted", "edited", "rejected")
        return Counter(
            row["action"]
            for row in rows
            if row["shown"] == "true" or (row["shown"] != "false" and row["action"] in known)
        )

    def counts(rows: list[dict[str, Any]], kind: str | None = None, model: str | None = None) -> ActionCounts:
        shown = actions(rows)
        kept = [row for row in rows if row["kept"] not in (None, "", "NULL") and row["action"] != "rejected"]
        characters = sum(len(row["output"]) for row in kept)
        edited = [edit_similarity(row["output"], row["kept"]) for row in kept if row["action"] == "edited"]
        return ActionCounts(
            kind,
            model,
            shown.total(),
            shown["accepted"],
            shown["edited"],
            shown["rejected"],
            shown["accepted"] / shown.total() if shown else None,
            sum(slow_retained(row["output"], row["kept"]) for row in kept) / characters if characters else None,
            sum(edited) / len(edited) if edited else None,
        )

    found = {kind: actions(rows) for kind, rows in by_type.items()}
    return FeedbackMetrics(
        counts(measured),
        [counts(by_type[kind], kind) for kind in sorted(by_type, key=lambda kind: (-found[kind].total(), kind))],
        [
            counts(by_model[model], model=model)
            for model in sorted(by_model, key=lambda model: (-actions(by_model[model]).total(), model))
        ],
        [
            RejectedGroup(kind, 10, found[kind]["rejected"], found[kind].total())
            for kind in sorted(by_type, key=lambda kind: (-found[kind]["rejected"], kind))
            if found[kind]["rejected"]
        ],
    )


def slow_retained(output: str, kept: str) -> int:
    """The longest common subsequence, by its recursion."""
    if not output or not kept:
        return 0
    if output[0] == kept[0]:
        return 1 + slow_retained(output[1:], kept[1:])
    return max(slow_retained(output[1:], kept), slow_retained(output, kept[1:]))


def test_null_marks_are_no_version_of_a_model(tmp_path: Path) -> None:
    rows = [{"INPUT": INPUT, "OUTPUT": "a", "ACTION": "accepted", "MODEL": model} for model in ("NULL", "", "v1")]
    write_csv(tmp_path / "rows.csv", rows, tuple(rows[0]))
    data = data_of(tmp_path / "rows.csv", {"action": "ACTION", "model": "MODEL"}, null_marks=["NULL"])
    metrics = prepare(tmp_path, data)[1].feedback
    assert metrics is not None
    assert [(found.model, found.shown) for found in metrics.by_model] == [("v1", 1)]


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_retained_characters(output: str, kept: str) -> None:
    assert retained(output, kept) == slow_retained(output, kept)


def test_what_is_rejected_most_by_type_and_length(tmp_path: Path) -> None:
    rows = [{"TYPE": "x", "INPUT": INPUT, "OUTPUT": "a" * n, "ACTION": "rejected"} for n in (1, 10, 11, 40, 101, 500)]
    rows += [{"TYPE": "y", "INPUT": INPUT, "OUTPUT": "a", "ACTION": "rejected"}] * 3
    rows += [{"TYPE": "y", "INPUT": INPUT, "OUTPUT": "b", "ACTION": "accepted"}]
    write_csv(tmp_path / "rows.csv", rows, ("TYPE", "INPUT", "OUTPUT", "ACTION"))
    write_raw_completions(data_of(tmp_path / "rows.csv", {"action": "ACTION"}), tmp_path / "raw.parquet")
    assert measure_feedback(tmp_path / "raw.parquet").rejected_most == [
        RejectedGroup("y", 10, 3, 4),
        RejectedGroup("x", 10, 2, 2),
        RejectedGroup("x", 40, 2, 2),
        RejectedGroup("x", None, 2, 2),
    ]
    assert texts_rejected_most(tmp_path / "raw.parquet", 1) == [("a", 4)]


def test_without_feedback_nothing_changes(tmp_path: Path) -> None:
    """Columns called SHOWN and ACTION are ordinary ones, and the digest that versions depend on has no trace of feedback."""
    rows = [{"INPUT": INPUT, "OUTPUT": "a", "SHOWN": "?", "ACTION": "rejected"}]
    write_csv(tmp_path / "rows.csv", rows, ("INPUT", "OUTPUT", "SHOWN", "ACTION"))
    data = data_of(tmp_path / "rows.csv", None)
    _, counts, (row,), outcomes = prepare(tmp_path, data)
    assert list(row)[-2:] == ["SHOWN", "ACTION"]
    assert outcomes[row["row_id"]] == ("trained on", "a")
    assert counts.feedback is None
    content = [["rows.csv", hashlib.sha256((tmp_path / "rows.csv").read_bytes()).hexdigest()]]
    options = data.sources[0].model_dump(mode="json", exclude={"name_or_path", "connection", "feedback"})
    line = json.dumps([False, options, content], sort_keys=True).encode() + b"\n"
    assert digest_sources(data) == hashlib.sha256(line).hexdigest()
    with_feedback = data_of(tmp_path / "rows.csv", {"action": "ACTION"})
    assert digest_sources(data) != digest_sources(with_feedback)
    assert digest_sources(with_feedback) != digest_sources(data_of(tmp_path / "rows.csv", {"shown": "SHOWN"}))


def test_columns_of_other_exports_keep_their_values_under_another_name(tmp_path: Path) -> None:
    rows = [{"INPUT": INPUT, "OUTPUT": "a", "ACTION": "rejected"}]
    for name in ("one.csv", "two.csv"):
        write_csv(tmp_path / name, [*rows, *rows] if name == "two.csv" else rows, ("INPUT", "OUTPUT", "ACTION"))
    sources = [
        {"name_or_path": str(tmp_path / "one.csv"), "feedback": {"action": "action"}},
        str(tmp_path / "two.csv"),
    ]
    _, counts, table, _ = prepare(tmp_path, DataConfig.model_validate({"sources": sources}))
    assert [(row["action"], row["export_ACTION"]) for row in table] == [
        ("rejected", ""),
        (None, "rejected"),
        (None, "rejected"),
    ]
    assert counts.rejected == {"rejected_by_user": 1}
    assert counts.feedback is not None
    assert counts.feedback.total.shown == 1


def log_row(request: str, output: str = "", **row: str) -> Row:
    return {"ID": request, "INPUT": INPUT if output else "", "OUTPUT": output, "SHOWN": "true" if output else "", **row}


@pytest.mark.parametrize("has_kept", [True, False])
def test_reports_of_a_log_are_joined_by_id_over_its_files(
    tmp_path: Path, has_kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first = [log_row(name, name) for name in ("a", "b", "c", "d", "e")] + [log_row("a", ACTION="accepted")]
    first += [log_row("f", "f", SHOWN="false"), log_row("g", "g", SHOWN="false"), log_row("e", ACTION="accepted")]
    second = [log_row("b", ACTION="rejected"), log_row("c", ACTION="edited", KEPT="typed"), log_row("h", "h")]
    second += [log_row("e", ACTION="rejected"), log_row("lost", ACTION="accepted"), log_row("lost", ACTION="accepted")]
    second += [log_row("g", ACTION="edited", KEPT="also typed")]
    columns = ("ID", "INPUT", "OUTPUT", "SHOWN", "ACTION", *(["KEPT"] if has_kept else []))
    (tmp_path / "log").mkdir()
    write_csv(tmp_path / "log/1.csv", first, columns)
    write_csv(tmp_path / "log/2.csv", second, columns)
    mapping = LOG if has_kept else {key: name for key, name in LOG.items() if key != "kept"}
    with caplog.at_level(logging.WARNING):
        raw, counts, table, outcomes = prepare(tmp_path, data_of(tmp_path / "log", mapping))
    assert (raw.rows, raw.reports) == (8, 8)
    assert raw.warnings == [f"{tmp_path / 'log'}: feedback on 1 completions that are not in the log is not used."]
    found = {row["request_id"]: outcomes[row["row_id"]][1] for row in table}
    assert found == {
        "a": "a",
        "b": "rejected_by_user",
        "c": "typed" if has_kept else "no_kept_text",
        "d": "no_action",
        "e": "rejected_by_user",
        "f": "no_action",
        "g": "also typed" if has_kept else "no_kept_text",
        "h": "no_action",
    }
    assert [row["row_id"].split("-")[1] for row in table] == [*map(str, range(7)), "0"]
    assert counts.feedback is not None
    assert counts.feedback.total.shown == 6


def test_a_sample_is_drawn_from_completions_not_from_reports(tmp_path: Path) -> None:
    rows = [row for n in range(20) for row in (log_row(str(n), f"o{n}"), log_row(str(n), ACTION="accepted"))]
    write_csv(tmp_path / "log.csv", rows, ("ID", "INPUT", "OUTPUT", "SHOWN", "ACTION", "KEPT"))
    source = {"name_or_path": str(tmp_path / "log.csv"), "feedback": LOG, "sample_count": 7, "split": "train[:10]"}
    raw, counts, table, _ = prepare(tmp_path, DataConfig.model_validate({"sources": [source]}))
    assert (raw.rows, raw.left_out, counts.rows_kept) == (7, 13, 7)
    assert all(int(row["request_id"]) < 10 and row["action"] == "accepted" for row in table)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", [{"INPUT": INPUT, "OUTPUT": "a"}], ("INPUT", "OUTPUT", "Shown"))
    with pytest.raises(
        FimError, match=r"rows\.csv has no column DONE, which `feedback\.action` names.*INPUT, OUTPUT, Shown"
    ):
        prepare(tmp_path, data_of(tmp_path / "rows.csv", {"shown": "SHOWN", "action": "DONE"}))


def test_rows_that_nobody_was_shown_have_no_feedback(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages, "ACTION": "accepted"}))
    with pytest.raises(FimError, match="rows that have an OUTPUT"):
        prepare(tmp_path, data_of(tmp_path / "chat.jsonl", {"action": "ACTION"}))
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql/a.sql").write_text("SELECT a FROM t;")
    with pytest.raises(FimError, match="SQL files"):
        prepare(tmp_path, data_of(tmp_path / "sql", {"action": "ACTION"}))
    for mistake in ({}, {"id": "ID"}, {"shown": "S", "id": "ID"}, {"acton": "A"}):
        with pytest.raises(ValidationError):
            Source.model_validate({"name_or_path": "x", "feedback": mistake})
    for kind in ("demo", "sql_files"):
        with pytest.raises(ValidationError, match="does not go with"):
            Source.model_validate({"type": kind, "name_or_path": "x", "feedback": {"action": "A"}})
