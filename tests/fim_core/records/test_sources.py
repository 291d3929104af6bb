"""The raw table holds every row of every source, verbatim."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fim_assets.automation.exports import list_exports
from fim_core.config import DataConfig, Source
from fim_core.errors import FimError
from fim_core.records.locate import locate
from fim_core.records.parse import parse_input
from fim_core.records.readers import BATCH_ROWS
from fim_core.records.schema import RAW_SCHEMA, Completion
from fim_core.records.sources import (
    MOST_TYPES,
    OTHER_TYPES,
    ExportRead,
    RawCounts,
    digest_sources,
    write_raw_completions,
)

ITEMS = [{"type": "text", "text": "select <fillMe>"}]
INPUT = json.dumps(ITEMS)


def config(*sources: dict[str, Any], held_out: tuple[dict[str, Any], ...] = ()) -> DataConfig:
    return DataConfig.model_validate({"sources": sources, "eval_sources": held_out})


def at(path: Path, **options: Any) -> dict[str, Any]:
    return {"name_or_path": str(path), **options}


def export(path: Path, header: list[str], *rows: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def run(data: DataConfig, tmp_path: Path) -> tuple[RawCounts, list[dict[str, Any]]]:
    output = tmp_path / "raw.out"
    counts = write_raw_completions(data, output)
    table = pq.read_table(output)
    assert table.schema.names[: len(RAW_SCHEMA.names)] == RAW_SCHEMA.names
    assert all(column.null_count == 0 for column in table.columns)
    rows = table.to_pylist()
    assert counts.rows == len(rows)
    for by in (counts.by_source, counts.by_source_type, counts.by_type):
        assert sum(by.values()) == len(rows)
    read = [(row["source"], row["row_id"].split("-")[0]) for row in rows]
    assert Counter(read) == {(e.name, e.digest[:12]): e.rows for e in counts.exports if e.rows}
    assert len({row["row_id"] for row in rows}) == len(rows)
    return counts, rows


def test_an_export(tmp_path: Path) -> None:
    path = export(tmp_path / "a.csv", ["Output", "WORKSHEET_ID", "input", "TYPE"], ["NULL", "007", INPUT, "expr"])
    counts, (row,) = run(config(at(path)), tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert row == {
        "row_id": f"{digest[:12]}-0",
        "source": "a.csv",
        "source_type": "fim_completions",
        "type": "expr",
        "input": INPUT,
        "output": "NULL",
        "held_out": False,
        "WORKSHEET_ID": "007",
    }
    assert counts == RawCounts(1, {"a.csv": 1}, {"fim_completions": 1}, {"expr": 1}, [ExportRead("a.csv", digest, 1)])


def test_rows_are_numbered_through_the_file(tmp_path: Path) -> None:
    path = export(tmp_path / "a.csv", ["INPUT", "OUTPUT"], *([INPUT, str(n)] for n in range(BATCH_ROWS + 5)))
    _, rows = run(config(at(path)), tmp_path)
    assert [row["row_id"].split("-")[1] for row in rows] == [row["output"] for row in rows]
    assert len(rows) == BATCH_ROWS + 5


def test_several_sources_keep_their_order_and_all_columns(tmp_path: Path) -> None:
    export(tmp_path / "x/b.csv", ["INPUT", "OUTPUT", "worksheet_id"], ["1", "one", "w1"], ["2", "two", "w2"])
    export(tmp_path / "x/c/a.csv", ["INPUT", "OUTPUT", "WORKSHEET_ID", "extra"], ["3", "three", "w3", "e"])
    export(tmp_path / "x/_tmp.csv", ["nothing"], ["?"])
    (tmp_path / "x/readme.txt").write_text("?")
    other = export(tmp_path / "other.csv", ["prompt", "response"], ["4", "four"])
    counts, rows = run(config(at(tmp_path / "x"), held_out=(at(other),)), tmp_path)
    assert [(row["input"], row["output"], row["source"], row["worksheet_id"], row["extra"]) for row in rows] == [
        ("1", "one", "b.csv", "w1", ""),
        ("2", "two", "b.csv", "w2", ""),
        ("3", "three", "c/a.csv", "w3", "e"),
        ("4", "four", "other.csv", "", ""),
    ]
    assert [row["held_out"] for row in rows] == [False, False, False, True]
    assert counts.by_source == {"b.csv": 2, "c/a.csv": 1, "other.csv": 1}
    assert counts.by_source_type == {"fim_completions": 3, "prompt_response": 1}


def test_rows_are_counted_by_type_and_the_rarest_types_together(tmp_path: Path) -> None:
    types = ["expr"] * 3 + ["", ""] + [f"rare {n}" for n in range(MOST_TYPES)]
    path = export(tmp_path / "a.csv", ["TYPE", "INPUT", "OUTPUT"], *([kind, INPUT, "x"] for kind in types))
    counts, _ = run(config(at(path)), tmp_path)
    assert list(counts.by_type.items())[:2] == [("expr", 3), ("", 2)]
    assert counts.by_type[OTHER_TYPES] == 2


def test_a_glob(tmp_path: Path) -> None:
    for name in ("2024/a.csv", "2025/a.csv", "2025/b.txt"):
        export(tmp_path / name, ["INPUT", "OUTPUT"], [name, ""])
    _, rows = run(config(at(tmp_path / "*/a.csv")), tmp_path)
    assert [row["source"] for row in rows] == ["2024/a.csv", "2025/a.csv"]


def test_the_same_bytes_twice_keep_unique_ids_and_cause_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = export(tmp_path / "a.csv", ["INPUT", "OUTPUT"], [INPUT, "1"])
    with caplog.at_level(logging.WARNING):
        counts, rows = run(config(at(path), at(path)), tmp_path)
    assert len(rows) == 2
    assert "same bytes" in counts.warnings[0]
    assert counts.warnings[0] in caplog.text


def test_column_names_that_clash(tmp_path: Path) -> None:
    header = ["INPUT", "OUTPUT", "row_id", "Source", "a", "A", "", "Type", "REASON", "detail"]
    path = export(tmp_path / "a.csv", header, ["i", "o", "r", "s", "1", "2", "3", "t", "why", "what"])
    _, (row,) = run(config(at(path)), tmp_path)
    extras = {name: value for name, value in row.items() if name not in RAW_SCHEMA.names}
    clashing = {"export_row_id": "r", "export_Source": "s", "export_REASON": "why", "export_detail": "what"}
    assert extras == clashing | {"a": "1", "A_2": "2", "column_7": "3"}
    assert row["type"] == "t"


def test_the_exact_spelling_of_a_column_wins(tmp_path: Path) -> None:
    path = export(tmp_path / "a.csv", ["input", "INPUT", "OUTPUT"], ["wrong", "right", ""])
    _, (row,) = run(config(at(path)), tmp_path)
    assert (row["input"], row["export_input"]) == ("right", "wrong")


def test_own_column_names(tmp_path: Path) -> None:
    path = export(tmp_path / "a.csv", ["state", "accepted", "kind"], [INPUT, "1", "k"])
    options = {"input_col": "STATE", "output_col": "Accepted", "type_col": "KIND"}
    _, (row,) = run(config(at(path, **options)), tmp_path)
    assert (row["input"], row["output"], row["type"]) == (INPUT, "1", "k")


def test_parquet_with_native_items_and_an_index(tmp_path: Path) -> None:
    table = pa.table({"INPUT": [ITEMS], "OUTPUT": [None], "__index_level_0__": [3]})
    pq.write_table(table, tmp_path / "a.parquet")
    _, (row,) = run(config(at(tmp_path / "a.parquet")), tmp_path)
    assert parse_input(row["input"]) == Completion("select ", "")
    assert (row["output"], row["__index_level_0__"]) == ("", "3")


@pytest.mark.parametrize(
    ("header", "options", "shape", "texts"),
    [
        (["INPUT", "OUTPUT"], {}, "fim_completions", ("1", "2")),
        (["Prompt", "RESPONSE"], {}, "prompt_response", ("1", "2")),
        (["messages", "x"], {}, "messages", ("1", "")),
        (["messages", "prompt", "response"], {"type": "huggingface_instruct"}, "messages", ("1", "")),
        (
            ["q", "a"],
            {"type": "huggingface", "columns": {"prompt": "Q", "response": "a"}},
            "prompt_response",
            ("1", "2"),
        ),
        (["chat", "x"], {"type": "huggingface", "columns": {"messages": "chat"}}, "messages", ("1", "")),
        (["prompt", "response"], {"type": "huggingface_prompt_response"}, "prompt_response", ("1", "2")),
    ],
)
def test_shapes(tmp_path: Path, header: list[str], options: dict, shape: str, texts: tuple[str, str]) -> None:
    path = export(tmp_path / "a.csv", header, [str(n + 1) for n in range(len(header))])
    counts, (row,) = run(config(at(path, **options)), tmp_path)
    assert (row["source_type"], row["input"], row["output"]) == (shape, *texts)
    assert counts.warnings == []


def test_a_warning_names_the_choice_between_two_shapes(tmp_path: Path) -> None:
    path = export(tmp_path / "a.csv", ["messages", "response", "prompt"], ["m", "r", "p"])
    counts, (row,) = run(config(at(path)), tmp_path)
    assert (row["source_type"], row["input"], row["output"], row["messages"]) == ("prompt_response", "p", "r", "m")
    assert len(counts.warnings) == 1
    assert "read as prompt_response" in counts.warnings[0]


@pytest.mark.parametrize(
    ("header", "options"),
    [
        (["Prompt", "response"], {}),
        (["prompt", "response"], {"type": "huggingface_prompt_response"}),
        (["q.a.b", "A"], {"type": "huggingface", "columns": {"prompt": "q.a.b", "response": "a"}}),
    ],
)
def test_questions_and_answers_become_conversations(tmp_path: Path, header: list[str], options: dict) -> None:
    path = export(tmp_path / "a.csv", header, ["why?", "so"])
    _, (row,) = run(config(at(path, render="chat", **options)), tmp_path)
    messages = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
    assert (row["source_type"], json.loads(row["input"]), row["output"]) == ("messages", messages, "")


@pytest.mark.parametrize("header", [["INPUT", "OUTPUT"], ["messages"]])
def test_render_goes_with_prompts_and_responses(tmp_path: Path, header: list[str]) -> None:
    path = export(tmp_path / "a.csv", header, ["x"] * len(header))
    with pytest.raises(FimError, match="`render: chat` goes with"):
        run(config(at(path, render="chat")), tmp_path)


@pytest.mark.parametrize("place", ["sets/july", "sets/j*"])
def test_parquet_without_a_suffix_is_found_by_its_first_bytes(tmp_path: Path, place: str) -> None:
    (tmp_path / "sets").mkdir()
    pq.write_table(pa.table({"prompt": ["p"], "response": ["r"]}), tmp_path / "sets" / "july")
    (tmp_path / "sets" / "june").write_bytes(b"something else")
    _, (row,) = run(config(at(tmp_path / place)), tmp_path)
    assert (row["input"], row["output"]) == ("p", "r")
    with pytest.raises(FimError, match="holds no file"):
        run(config(at(tmp_path / "sets" / "june")), tmp_path)


HUMAN = {"from": "human", "value": "hi"}
GPT = {"from": "gpt", "value": "yo", "weight": None}
SYSTEM = {"from": "system", "value": "be short"}


@pytest.mark.parametrize(
    ("row", "mapping", "messages"),
    [
        (
            {"conversations": [SYSTEM, HUMAN, GPT]},
            {"user": "conversations.from.human", "assistant": "conversations.from.gpt"},
            [("system", "be short"), ("user", "hi"), ("assistant", "yo")],
        ),
        (
            {"messages": [{"role": "user", "content": "hi"}], "answer": "yo"},
            {"user": "messages.role.user", "assistant": "answer"},
            [("user", "hi"), ("assistant", "yo")],
        ),
        ({"q": "hi", "a": "007"}, {"user": "Q", "assistant": "a"}, [("user", "hi"), ("assistant", "007")]),
        ({"chat": [{"who": "me", "text": "hi"}]}, {"user": "chat.who.me"}, [("user", "hi")]),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_role_mapping(tmp_path: Path, row: dict, mapping: dict, messages: list, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_text(json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    _, (found,) = run(config(at(path, type="huggingface_instruct", role_mapping=mapping)), tmp_path)
    assert json.loads(found["input"]) == [{"role": role, "content": content} for role, content in messages]
    assert (found["source_type"], found["output"]) == ("messages", "")


@pytest.mark.parametrize("cell", ["not json", '{"a": 1}', '["a"]', "[" * 100_000])
def test_invalid_messages_are_kept_verbatim(tmp_path: Path, cell: str) -> None:
    path = export(tmp_path / "a.csv", ["messages"], [cell])
    _, (row,) = run(config(at(path, role_mapping={"user": "messages.role.user"})), tmp_path)
    assert row["input"] == cell


def test_saved_datasets(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"INPUT": [INPUT, INPUT], "OUTPUT": ["NULL", None], "n": [1, 2]})
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one.select([1]), "test": one}).save_to_disk(tmp_path / "both")
    _, rows = run(config(at(tmp_path / "one")), tmp_path)
    assert [(row["output"], row["n"], row["source"]) for row in rows] == [("NULL", "1", "one"), ("", "2", "one")]
    _, rows = run(config(at(tmp_path / "both")), tmp_path)
    assert [row["n"] for row in rows] == ["2"]
    _, rows = run(config(at(tmp_path / "both", split="test")), tmp_path)
    assert len(rows) == 2
    with pytest.raises(FimError, match=r"no split dev\. Its splits are: train, test"):
        run(config(at(tmp_path / "both", split="dev")), tmp_path)


def test_a_saved_dataset_with_an_empty_split(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"INPUT": ["a"], "OUTPUT": ["b"]})
    datasets.DatasetDict({"train": one, "test": one.select([])}).save_to_disk(tmp_path / "both")
    _, rows = run(config(at(tmp_path / "both")), tmp_path)
    assert [row["input"] for row in rows] == ["a"]
    with pytest.raises(FimError, match="both: the data set saved here is damaged or holds no rows"):
        run(config(at(tmp_path / "both", split="test")), tmp_path)


def test_the_demo(tmp_path: Path) -> None:
    data = config({"type": "demo", "rows": 100, "seed": 3})
    counts, rows = run(data, tmp_path)
    assert counts.by_source == {"demo": 100}
    assert any(isinstance(parse_input(row["input"]), Completion) for row in rows)
    assert rows == run(data, tmp_path)[1]


def test_sql_files_are_recognised_by_suffix(tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q/a.sql").write_text("select 1;\nselect b from t where c > 2;\n")
    options = {"sql": {"cuts_per_statement": 3}, "input_col": "state"}
    counts, rows = run(config(at(tmp_path / "q", **options)), tmp_path)
    assert counts.by_source_type == {"fim_completions": len(rows)}
    assert all(isinstance(parse_input(row["input"]), Completion) for row in rows)
    export(tmp_path / "q/b.csv", ["INPUT", "OUTPUT"], [INPUT, ""])
    counts, rows = run(config(at(tmp_path / "q")), tmp_path)
    assert [row["source"] for row in rows] == ["b.csv"]
    assert "data files and SQL files" in counts.warnings[0]


def test_sql_files_are_cut_in_several_processes(tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    for number in range(5):
        (tmp_path / f"q/{number}.sql").write_text(f"select {number} from t where a > {number};\n" * 3)
    (tmp_path / "q/broken.sql").write_text("select 'x;\nselect 1;\n")
    source = at(tmp_path / "q", sql={"cuts_per_statement": 3})
    one, rows = run(config(source), tmp_path)
    two, same = run(config(source).model_copy(update={"num_proc": 2}), tmp_path)
    assert (one, rows) == (two, same)
    assert "broken.sql cannot be tokenized" in one.warnings[0]


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        (["INPUT", "x"], {}, "neither INPUT and OUTPUT.*Its columns are: INPUT, x"),
        (["INPUT", "x"], {"type": "fim_completions"}, "no column OUTPUT.*Its columns are: INPUT, x"),
        (["Input", "input", "OUTPUT"], {}, "several columns INPUT"),
        (["INPUT", "INPUT", "OUTPUT"], {}, "several columns INPUT"),
        (["x"], {"type": "huggingface_instruct"}, "no column messages"),
        (["x"], {"type": "huggingface", "columns": {"prompt": "x"}}, "must name prompt and response, or messages"),
        (["prompt", "response"], {"type": "fim_completions", "columns": {"messages": "x"}}, "`columns` goes with"),
        (["x"], {"type": "huggingface_prompt_response", "role_mapping": {"user": "x"}}, "`role_mapping` goes with"),
        (["x"], {"role_mapping": {"user": "x.y"}}, "neither `column` nor"),
        (["x"], {"role_mapping": {"user": "x", "assistant": "x.y.z"}}, "both as one message and"),
        (["x"], {"role_mapping": {"user": "y"}}, "no column y"),
        (["INPUT", "OUTPUT"], {}, "no rows"),
        (["x"], {"type": "sql_files"}, r"no \*.sql file"),
    ],
)
def test_errors_for_unreadable_sources(tmp_path: Path, header: list[str], options: dict, message: str) -> None:
    path = export(tmp_path / "a.csv", header, *([] if message == "no rows" else [["1"] * len(header)]))
    with pytest.raises(FimError, match=message):
        run(config(at(path, **options)), tmp_path)


@pytest.mark.parametrize(
    "name", ["gone.csv", "gone/*.csv", "/gone", "some/where/else", "gone.sql", "org/no-such-data-set"]
)
def test_errors_for_missing_sources(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FimError, match=r"name_or_path|holds no file"):
        run(config({"name_or_path": name}), tmp_path)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(FimError, match="holds no file"):
        run(config(at(tmp_path / "x")), tmp_path)


def test_the_digest_covers_content_and_options_not_paths(tmp_path: Path) -> None:
    first = export(tmp_path / "1/a.csv", ["INPUT", "OUTPUT"], [INPUT, "1"])
    same = export(tmp_path / "2/a.csv", ["INPUT", "OUTPUT"], [INPUT, "1"])
    other = export(tmp_path / "3/a.csv", ["INPUT", "OUTPUT"], [INPUT, "2"])
    digest = digest_sources(config(at(first)))
    assert digest == digest_sources(config(at(same)))
    different = [
        config(at(other)),
        config(at(first), at(first)),
        config(at(first, type="fim_completions")),
        config(at(first), held_out=(at(first),)),
        config({"type": "demo", "seed": 1}),
        config({"type": "demo", "seed": 2}),
    ]
    assert len({digest, *map(digest_sources, different)}) == len(different) + 1


words = st.text(st.sampled_from('",\r\n\\<fillMe>') | st.characters(exclude_categories=["Cs"]), max_size=12)


# Each case writes and reads files through every stage: a tenth of the cases.
@settings(max_examples=max(20, settings.default.max_examples // 10))
@given(st.lists(st.lists(st.tuples(words, words, words), max_size=4), min_size=1, max_size=3))
def test_every_row_of_every_file_is_there_verbatim(tmp_path: Path, files: list[list[tuple[str, str, str]]]) -> None:
    sources = []
    for number, rows in enumerate(files):
        sources.append(at(export(tmp_path / f"{number}.csv", ["INPUT", "OUTPUT", "x"], *map(list, rows))))
    expected = [row for rows in files for row in rows]
    if not expected:
        with pytest.raises(FimError, match="no rows"):
            run(config(*sources), tmp_path)
        return
    _, found = run(config(*sources), tmp_path)
    assert [(row["input"], row["output"], row["x"]) for row in found] == expected


def test_an_empty_file_among_others_has_no_rows(tmp_path: Path) -> None:
    """An export may cover an hour without completions; alone, an empty file is an error."""
    folder = tmp_path / "exports"
    folder.mkdir()
    (folder / "10.csv").write_text("INPUT,OUTPUT\na,b\n")
    empty = ("11.csv", "12.jsonl", "13.parquet")
    for name in empty:
        (folder / name).write_bytes(b"")
    told: list[str] = []
    [export] = locate(Source(name_or_path=str(folder)), None, tmp_path, told.append)
    assert export.name == "10.csv"
    assert told == [f"{name} is empty: 0 rows." for name in empty]
    (folder / "10.csv").unlink()
    with pytest.raises(FimError, match="is empty"):
        locate(Source(name_or_path=str(folder)), None, tmp_path, told.append)


def test_linked_folders_are_read_and_loops_end(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "exports", tmp_path / "elsewhere"
    for place in (folder / "july", elsewhere / "deep"):
        place.mkdir(parents=True)
        (place / "rows.csv").write_text("INPUT,OUTPUT\na,b\n")
    (folder / "august").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (folder / "july" / "itself").symlink_to(".")
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    found = locate(Source(name_or_path=str(folder)), None, tmp_path, lambda message: None)
    assert [export.name for export in found] == ["august/deep/rows.csv", "july/rows.csv"]
    seen, _ = list_exports(str(folder), {}, 0, now=0.0)
    assert list(seen) == [export.name for export in found]


def test_the_check_of_required_columns_lists_those_of_the_schema() -> None:
    check = Path(__file__).parents[3] / "fim_core" / "quality" / "raw_completions" / "required_columns.sql"
    types = {"VARCHAR": pa.string(), "BOOLEAN": pa.bool_()}
    listed = re.findall(r"\('(\w+)', '(\w+)'\)", check.read_text())
    assert [(name, types[kind]) for name, kind in listed] == [(field.name, field.type) for field in RAW_SCHEMA]
    assert f"-- total: {len(RAW_SCHEMA)}\n" in check.read_text()
