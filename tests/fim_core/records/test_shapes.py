"""Row shapes: one module and one registration take a new format through the raw table and the prompts table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_path import MODEL

from fim_core.config import DataConfig, Source
from fim_core.config.data import SourceType
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.errors import FimError
from fim_core.evaluation.eval_set import RawRow, _ddl
from fim_core.prompt_format.recipe import read_recipe
from fim_core.prompts import write_fim_prompts
from fim_core.records.schema import Completion, Conversation, FinishedPrompt, Reason, Rejection
from fim_core.records.shapes import SHAPES, ParsedRow, ShapeColumns, names_of, shape_of
from fim_core.records.sources import write_raw_completions

TOKENIZER = train_tokenizer(["select a from t;"], 400)
ROW = {"before": "select ", "after": " from t", "accepted": "a", "schema": "create table t (a int)", "user": "u1"}


@dataclass(frozen=True)
class OtherEditor:
    """The log of a made-up editor: text before and after the cursor in columns of their own."""

    name: str = "other_editor"
    types: tuple[str, ...] = ()
    keys: tuple[str, ...] = ("before", "after", "accepted", "schema")
    parses_to: type[ParsedRow] = Completion

    def columns(self, source: Source, has_column: Callable[[str], bool]) -> ShapeColumns:
        before, after, accepted, schema = ((source.columns or {}).get(key, key) for key in self.keys)
        return ShapeColumns((before, after, schema), accepted, json.dumps)

    def parse(self, text: str, placeholder: str) -> Completion | Rejection:
        before, after, schema = json.loads(text)
        if not before and not after:
            return Rejection(Reason.EMPTY_INPUT, "there is no text around the cursor")
        return Completion(before, after, ddl_context=schema)


@pytest.fixture
def other_editor() -> Iterator[None]:
    SHAPES.append(OtherEditor())
    yield
    SHAPES.pop()


def prompts_of(tmp_path: Path, rows: list[dict[str, str]], **source: object) -> tuple[list[dict], list[dict]]:
    """Raw rows and prompts of an export."""
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    data = DataConfig.model_validate({"sources": [{"name_or_path": str(tmp_path / "log.parquet"), **source}]})
    raw, prompts = tmp_path / "raw.parquet", tmp_path / "prompts"
    write_raw_completions(data, raw)
    write_fim_prompts(raw, prompts, data=data, model=MODEL, tokenizer=TOKENIZER, seed=0)
    return pq.read_table(raw).to_pylist(), pq.read_table(prompts / "prompts.parquet").to_pylist()


@pytest.mark.usefixtures("other_editor")
@pytest.mark.parametrize("names", [{}, {"before": "left", "after": "right", "accepted": "text", "schema": "tables"}])
def test_the_log_of_another_editor_becomes_prompts(tmp_path: Path, names: dict[str, str]) -> None:
    rows = [{names.get(key, key): value for key, value in row.items()} for row in (ROW, ROW | dict.fromkeys(ROW, ""))]
    source = {"type": "huggingface", "columns": names} if names else {}
    raw, prompts = prompts_of(tmp_path, rows, **source)
    assert [(row["source_type"], row["output"], row["user"]) for row in raw] == [
        ("other_editor", "a", "u1"),
        ("other_editor", "", ""),
    ]
    (row,) = prompts
    assert (row["source_type"], row["is_completion"], row["is_finished"]) == ("other_editor", True, False)
    assert (row["prefix"], row["response"], row["suffix"]) == ("select ", "a", " from t")
    assert ROW["schema"] in row["prompt"]
    assert pq.read_table(tmp_path / "prompts" / "rejected.parquet")["reason"].to_pylist() == ["empty_input"]
    original = RawRow(*(raw[0][name] for name in RawRow._fields))
    assert _ddl(original, read_recipe(tmp_path / "prompts"), "<fillMe>") == ROW["schema"]


@pytest.mark.usefixtures("other_editor")
def test_a_new_shape_is_named_where_no_shape_fits(tmp_path: Path) -> None:
    with pytest.raises(FimError, match="nor before and after and schema and accepted"):
        prompts_of(tmp_path, [{"x": "y"}])


def test_which_rows_are_completions(tmp_path: Path) -> None:
    """The three kinds of rows; a finished prompt is a completion where its FIM tokens are known."""
    chat = json.dumps([{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}])
    state = json.dumps([{"type": "text", "text": "select <fillMe>"}])
    finished = "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
    found = {}
    for number, row in enumerate(
        [{"INPUT": state, "OUTPUT": "1"}, {"prompt": finished, "response": "1"}, {"messages": chat}]
    ):
        (tmp_path / str(number)).mkdir()
        _, (prompt,) = prompts_of(tmp_path / str(number), [row])
        found[prompt["source_type"]] = (prompt["is_completion"], prompt["is_finished"])
    (tmp_path / "plain").mkdir()
    _, (prompt,) = prompts_of(tmp_path / "plain", [{"prompt": "why?", "response": "so"}])
    assert (prompt["is_completion"], prompt["is_finished"], prompt["prefix"]) == (False, True, None)
    assert found == {
        "fim_completions": (True, False),
        "prompt_response": (True, True),
        "messages": (False, False),
    }


def test_no_check_compares_with_the_name_of_a_shape() -> None:
    folder = Path(__file__).parents[3] / "fim_core" / "quality"
    texts = [file.read_text() for file in sorted(folder.rglob("*")) if file.suffix in (".sql", ".py")]
    assert len(texts) > 20
    assert not [text for text in texts if any(f"'{shape.name}'" in text for shape in SHAPES)]


def test_every_source_type_of_the_configuration_is_known() -> None:
    """`type` names a shape, or says where rows come from."""
    named = [kind for shape in SHAPES for kind in shape.types]
    assert len(named) == len(set(named))
    assert set(get_args(SourceType)) - set(named) == {"auto", "huggingface", "sql_files", "snowflake", "demo"}
    assert set(named) <= set(get_args(SourceType))


def test_shapes_are_found_by_name_and_kind() -> None:
    assert [shape_of(shape.name) for shape in SHAPES] == SHAPES
    assert [names_of(kind) for kind in (Completion, FinishedPrompt, Conversation)] == [
        {"fim_completions"},
        {"prompt_response"},
        {"messages"},
    ]
    with pytest.raises(FimError, match="unknown source_type horse"):
        shape_of("horse")
