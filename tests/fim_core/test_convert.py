"""`fim convert`: command line, output and errors."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import typer
from data_path import MODEL, completion, data_options
from small_tokenizers import like_model
from typer.testing import CliRunner

from fim_core.cli.convert import register
from fim_core.config import DataConfig, Experiment
from fim_core.convert import Format, convert, default_output
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.errors import FimError
from fim_core.pipeline import run as run_pipeline
from fim_core.prompt_format.recipe import recipe_of
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.prompts import PromptBuilder
from fim_core.records.schema import Completion
from fim_core.records.sources import digest_sources, write_raw_completions

app = typer.Typer()
register(app)
app.command("other")(lambda: None)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["select a from t;"] * 3, 600).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    rows = [
        completion("select ", " from t", "NULL"),
        completion("select ", " from t", ""),
        completion("", " from t", "select 007"),
        {"input": "broken customer_sql", "output": "x"},
        completion("select '<|im_end|>", "", "customer_sql"),
        {"input": '[{"type":"text","text":"a \\d <fillMe>"}]', "output": "y"},
    ]
    path = tmp_path / "july.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["type", "Input", "WORKSHEET", "Output"])
        writer.writerows(["t", row["input"], "w", row["output"]] for row in rows)
    return path


def run(*arguments: Any) -> str:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_family_that_reads_the_suffix_first(export: Path, tmp_path: Path) -> None:
    like_model("codestral", chat=False).save_pretrained(tmp_path / "tokenizer")
    arguments = (export, "-o", tmp_path / "out", "--tokenizer", tmp_path / "tokenizer")
    with pytest.raises(FimError, match="--fim-order spm"):
        run(*arguments)
    run(*arguments, "--fim-order", "spm", "--format", "parquet")
    recipe = recipe_of(pq.read_schema(tmp_path / "out"), "out")
    assert recipe is not None
    assert recipe.fim_order == "spm"
    assert all(
        row["prompt"].index("[SUFFIX]") < row["prompt"].index("[PREFIX]")
        for row in pq.read_table(tmp_path / "out").to_pylist()
    )


def test_the_default(export: Path, tokenizer_folder: str) -> None:
    printed = run(export, "--tokenizer", tokenizer_folder)
    output = export.parent / "july_hf_fim_dataset"
    rows = datasets.load_from_disk(str(output)).to_list()
    assert [row["response"] for row in rows] == ["NULL", "", "select 007", "y"]
    assert rows[0]["prompt"].endswith("<|im_start|>assistant\n<|fim_prefix|>select <|fim_suffix|> from t<|fim_middle|>")
    summary = json.loads((export.parent / "july_hf_fim_dataset.summary.json").read_text())
    assert (summary["rows_in"], summary["rows_kept"], summary["repaired"]) == (6, 4, 1)
    assert summary["rejected"] == {"control_token": 1, "invalid_json": 1}
    rejected = pq.read_table(export.parent / "july_hf_fim_dataset.rejected.parquet").to_pylist()
    assert list(rejected[0]) == ["row_id", "reason", "detail", "TYPE", "INPUT", "OUTPUT", "WORKSHEET"]
    assert (rejected[0]["INPUT"], rejected[0]["OUTPUT"], rejected[0]["TYPE"]) == ("broken customer_sql", "x", "t")
    assert "4 of 6 rows" in printed
    assert "customer_sql" not in printed
    assert not list(export.parent.glob(".*"))


def test_parquet_flags_and_column_names(export: Path, tokenizer_folder: str) -> None:
    output = export.parent / "new" / "out.parquet"
    flags = ("--skip-empty-output", "--skip-empty-prefix", "--input-col", "INPUT", "--output-col", "output")
    run(export, "-o", output, "--tokenizer", tokenizer_folder, "--format", "parquet", "--template", "plain", *flags)
    rows = pq.read_table(output).to_pylist()
    assert rows[0]["prompt"] == "<|fim_prefix|>select <|fim_suffix|> from t<|fim_middle|>"
    summary = json.loads(Path(f"{output}.summary.json").read_text())
    assert summary["rejected"] == {"control_token": 1, "empty_output": 1, "empty_prefix": 1, "invalid_json": 1}
    assert summary["rows_in"] == summary["rows_kept"] + sum(summary["rejected"].values())


@pytest.mark.parametrize("format", ["disk", "parquet"])
def test_an_export_without_any_usable_row(tmp_path: Path, tokenizer_folder: str, format: str) -> None:
    (tmp_path / "bad.csv").write_text("INPUT,OUTPUT\n{},x\n,y\n")
    output = tmp_path / "out"
    printed = run(tmp_path / "bad.csv", "-o", output, "--tokenizer", tokenizer_folder, "--format", format)
    assert "0 of 2 rows" in printed
    assert "No row was kept" in printed
    assert pq.read_table(f"{output}.rejected.parquet").column("reason").to_pylist() == [
        "unsupported_json",
        "empty_input",
    ]
    rows = pq.read_table(output) if format == "parquet" else datasets.load_from_disk(str(output))
    assert len(rows) == 0


def test_only_its_own_output_is_replaced(export: Path, tokenizer_folder: str) -> None:
    output, first = convert(export, tokenizer=tokenizer_folder)
    _, second = convert(export, tokenizer=tokenizer_folder, skip_empty_output=True)
    assert (first["rows_kept"], second["rows_kept"]) == (4, 3)
    assert len(datasets.load_from_disk(str(output))) == 3
    with pytest.raises(FimError, match="was not written by `fim convert`"):
        convert(export, export.parent, tokenizer=tokenizer_folder)
    with pytest.raises(FimError, match="INPUTS"):
        convert(export, tokenizer=tokenizer_folder, input_col="INPUTS")
    assert len(datasets.load_from_disk(str(output))) == 3
    assert not list(export.parent.glob(".*"))


@pytest.mark.parametrize(
    ("name", "expected"), [("a.csv", "a"), ("a.b.csv.gz", "a.b"), ("a.parquet", "a"), ("folder", "folder")]
)
def test_the_default_output(name: str, expected: str) -> None:
    assert default_output(Path("x") / name) == Path("x") / f"{expected}_hf_fim_dataset"


@pytest.mark.parametrize("format", ["disk", "parquet"])
@pytest.mark.parametrize("output", [None, "out", "out.data"])
def test_the_output_is_a_source_whatever_its_name(
    export: Path, tokenizer_folder: str, format: Format, output: str | None
) -> None:
    place, summary = convert(
        export, export.parent / output if output else None, tokenizer=tokenizer_folder, format=format
    )
    assert place == export.parent / (output or "july_hf_fim_dataset")
    if format == "parquet":
        written = pq.read_table(place).to_pylist()
        loaded = datasets.load_dataset("parquet", data_files=str(place), cache_dir=str(export.parent / "cache"))
        assert loaded["train"].to_list() == written
    else:
        written = datasets.load_from_disk(str(place)).to_list()
    data = DataConfig.model_validate({"sources": [{"name_or_path": str(place)}]})
    counts = write_raw_completions(data, export.parent / "raw.parquet")
    assert (counts.rows, counts.by_source_type) == (summary["rows_kept"], {"prompt_response": summary["rows_kept"]})
    raw = pq.read_table(export.parent / "raw.parquet")
    assert [(row["input"], row["output"], row["type"]) for row in raw.to_pylist()] == [
        (row["prompt"], row["response"], row["type"]) for row in written
    ]
    recipe = recipe_of(raw.schema, "raw")
    assert recipe is not None
    builder = PromptBuilder(load_tokenizer(tokenizer_folder), MODEL, data_options(), recipe)
    assert (
        builder.encode(Completion("select ", " from t"))
        == load_tokenizer(tokenizer_folder)(written[0]["prompt"], add_special_tokens=False)["input_ids"]
    )


def test_the_folder_of_an_export_is_read_without_what_convert_wrote_there(export: Path, tokenizer_folder: str) -> None:
    for format in ("disk", "parquet"):
        convert(export, export.parent / format, tokenizer=tokenizer_folder, format=format)
    data = DataConfig.model_validate({"sources": [{"name_or_path": str(export.parent)}]})
    assert write_raw_completions(data, export.parent / "raw").by_source == {"july.csv": 6}


def test_sets_of_different_recipes_do_not_mix(export: Path, tokenizer_folder: str) -> None:
    places = [
        convert(export, export.parent / template, tokenizer=tokenizer_folder, template=template, format="parquet")[0]
        for template in ("chat", "plain")
    ]
    data = DataConfig.model_validate({"sources": [str(place) for place in places]})
    for read in (digest_sources, lambda data: write_raw_completions(data, export.parent / "raw")):
        with pytest.raises(FimError, match="chat and plain hold finished prompts of different forms"):
            read(data)


@pytest.mark.parametrize(
    ("options", "source", "said"),
    [
        ({"fim_order": "spm"}, {}, "order psm"),
        ({"template": "plain"}, {}, "template chat"),
        ({}, {"render": "chat"}, "Remove `render`"),
    ],
)
def test_contradicting_options_are_refused_before_any_work(
    export: Path, tokenizer_folder: str, options: dict[str, Any], source: dict[str, Any], said: str
) -> None:
    place, _ = convert(export, tokenizer=tokenizer_folder, format="parquet")
    data = {"sources": [{"name_or_path": str(place), **source}], **options}
    experiment = {"name": "x", "storage": str(export.parent / "store"), "data": data}
    experiment["model"] = {"config": {"model_type": "qwen3"}, "tokenizer": tokenizer_folder}
    with pytest.raises(FimError, match=said):
        run_pipeline(Experiment.model_validate(experiment), until="fim_prompts")
    assert not list((export.parent / "store" / "raw_completions").glob("*/manifest.json"))


def test_the_default_output_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exports" / "july").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "exports" / "july")
    assert default_output(Path(".")) == tmp_path / "exports" / "july_hf_fim_dataset"
    assert default_output(Path("..")) == tmp_path / "exports_hf_fim_dataset"
