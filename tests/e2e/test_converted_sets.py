"""Converted data sets: convert an export, use the result as a source, train; and data sets of other converters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import DAMAGES, damaged
from datasets import load_from_disk
from tiny_pipeline import TINY, write_experiment
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from fim_core.cli.main import app
from fim_core.config import DataConfig, load_experiment
from fim_core.demo.export import write_export
from fim_core.errors import FimError
from fim_core.inference.prompting import load_prompt_builder
from fim_core.pipeline import STAGES, StageResult, run
from fim_core.prompt_format.recipe import read_recipe
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.records.parse import parse_input
from fim_core.records.readers import read_file
from fim_core.records.schema import Completion
from fim_core.records.sources import digest_sources, write_raw_completions

ROWS = 200
FORMATS = ("disk", "parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """An export, a tokenizer, and the export converted in both formats."""
    folder = tmp_path_factory.mktemp("converted")
    write_export(folder / "export.csv", rows=ROWS, seed=3)
    tokenizer.save_pretrained(folder / "tokenizer")
    for name in FORMATS:
        arguments = ("export.csv", "-o", name, "--tokenizer", "tokenizer", "--format", name)
        places = [str(folder / text) if text in ("export.csv", name, "tokenizer") else text for text in arguments[:-1]]
        result = CliRunner().invoke(app, ["convert", *places, name])
        assert result.exit_code == 0, result.output
    return folder


def converted(folder: Path, name: str) -> list[dict[str, str]]:
    place = folder / name
    return (pq.read_table(place) if place.is_file() else load_from_disk(str(place))).to_pandas().to_dict("records")


def train(folder: Path, source: Path, until: str = STAGES[-1].asset, **changes: Any) -> dict[str, StageResult]:
    folder.mkdir()
    model = {**TINY["model"], "tokenizer": str(source.parent / "tokenizer")}
    data = {"sources": [{"name_or_path": str(source)}], "max_length": 2048, "eval_fraction": 0.2, **changes}
    return run(load_experiment(write_experiment(folder, model=model, data=data)), until=until)


def require_rows_of_the_export(folder: Path, name: str, results: dict[str, StageResult]) -> list[Completion]:
    """Require that prompts and tokens are those of the converted set; returns what the rows complete."""
    rows = converted(folder, name)
    summary = json.loads((folder / f"{name}.summary.json").read_text())
    made = results["fim_prompts"].artifact
    assert made.counts["rejected"] == {}
    prompts = pq.read_table(made.path / "prompts.parquet").to_pylist()
    assert len(prompts) == summary["rows_kept"] == len(rows)
    assert [(row["prompt"], row["response"], row["type"]) for row in prompts] == [
        (row["prompt"], row["response"], row["type"]) for row in rows
    ]
    states = original_states(folder / "export.csv")
    by_state = [states[int(row["row_id"].rpartition("-")[2])] for row in rows]
    assert [(row["prefix"], row["suffix"]) for row in prompts] == [(state.prefix, state.suffix) for state in by_state]

    tokenizer, end_id = load_tokenizer(folder / "tokenizer"), read_recipe(made.path).fim_tokens.end_id
    tokens = load_from_disk(str(results["tokenized_dataset"].artifact.path / "dataset"))
    by_id = {row["row_id"]: row["input_ids"] for split in ("train", "eval") for row in tokens[split]}
    for row in prompts:
        ids = [tokenizer(row[column], add_special_tokens=False)["input_ids"] for column in ("prompt", "response")]
        assert by_id[row["row_id"]] == [*ids[0], *ids[1], end_id]
    return by_state


def test_a_converted_file_is_prepared_as_it_is(folder: Path, tmp_path: Path) -> None:
    results = train(tmp_path / "run", folder / "parquet", until="tokenized_dataset")
    require_rows_of_the_export(folder, "parquet", results)


def test_converting_naming_and_training(folder: Path, tmp_path: Path) -> None:
    results = train(tmp_path / "run", folder / "disk")
    assert list(results) == [stage.asset for stage in STAGES]
    by_state = require_rows_of_the_export(folder, "disk", results)
    rows, tokenizer = converted(folder, "disk"), load_tokenizer(folder / "tokenizer")
    checkpoint = results["trained_checkpoint"].artifact.path
    assert read_recipe(checkpoint).fim_tokens == read_recipe(results["fim_prompts"].artifact.path).fim_tokens
    builder = load_prompt_builder(checkpoint, load_tokenizer(checkpoint))
    for state, row in zip(by_state, rows, strict=True):
        assert builder.encode(state) == tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    assert "Template `chat`." in (checkpoint / "README.md").read_text()
    report = json.loads((results["evaluation_report"].artifact.path / "report.json").read_text())
    assert report["counts"]["gold_parses"] > 0
    assert report["counts"]["gold_binds"] > 0, "the table definitions are found in the prompts"
    answer = CliRunner().invoke(app, ["complete", "--checkpoint", str(checkpoint)], input="select <fillMe> from t")
    assert (answer.exit_code, answer.stderr) == (0, "")


def test_both_formats_and_the_export_itself_hold_out_the_same_rows(folder: Path, tmp_path: Path) -> None:
    sides = []
    for name in (*FORMATS, "export.csv"):
        (tmp_path / name).mkdir()
        data = {"sources": [{"name_or_path": str(folder / name)}], "max_length": 2048, "eval_fraction": 0.3}
        model = {**TINY["model"], "tokenizer": str(folder / "tokenizer")}
        path = write_experiment(tmp_path / name, model=model, data=data)
        prompts = run(load_experiment(path), until="fim_prompts")["fim_prompts"].artifact.path / "prompts.parquet"
        table = pq.read_table(prompts, columns=["prompt", "split", "group"]).to_pylist()
        sides.append([tuple(row.values()) for row in table])
    assert sides[0] == sides[1] == sides[2]


def test_a_set_without_a_recipe(folder: Path, tmp_path: Path) -> None:
    """A data set of another converter: two columns only, suffix first."""
    rows = converted(folder, "disk")
    pairs = [{"prompt": suffix_first(row["prompt"]), "response": row["response"]} for row in rows]
    (tmp_path / "tokenizer").symlink_to(folder / "tokenizer")
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "theirs.parquet")
    results = train(tmp_path / "run", tmp_path / "theirs.parquet")
    counts = results["fim_prompts"].artifact.counts
    assert counts["rows_kept"] == len(rows)
    assert "<|fim_middle|>, suffix first, in" in counts["notice"]
    assert f"in {len(rows)} of {len(rows)} prompts" in counts["notice"]
    report = json.loads((results["evaluation_report"].artifact.path / "report.json").read_text())
    assert report["counts"]["gold_parses"] > 0
    checkpoint = results["trained_checkpoint"].artifact.path
    assert "The template is not known." in (checkpoint / "README.md").read_text()
    tokenizer = load_tokenizer(checkpoint)
    ids = load_prompt_builder(checkpoint, tokenizer).encode(
        Completion("a ", " b", ddl_context="create table t (a int)")
    )
    assert tokenizer.decode(ids) == "<|fim_suffix|> b<|fim_prefix|>a <|fim_middle|>"
    answer = CliRunner().invoke(app, ["complete", "--checkpoint", str(checkpoint)], input="select <fillMe> from t")
    assert answer.exit_code == 0
    assert "unknown template" in answer.stderr


def suffix_first(prompt: str) -> str:
    lead, _, rest = prompt.partition("<|fim_prefix|>")
    prefix, _, suffix = rest.removesuffix("<|fim_middle|>").partition("<|fim_suffix|>")
    return f"{lead}<|fim_suffix|>{suffix}<|fim_prefix|>{prefix}<|fim_middle|>"


def original_states(export: Path) -> dict[int, Completion]:
    """The INPUT of an export by row number, without the damaged rows of the demo."""
    texts = [text for batch in read_file(export, "export").batches(print) for text in batch.column("INPUT").to_pylist()]
    parsed = {number: parse_input(text) for number, text in enumerate(texts)}
    return {number: state for number, state in parsed.items() if isinstance(state, Completion)}


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_set_is_reported_in_one_sentence(folder: Path, name: str, tmp_path: Path) -> None:
    """1 and 4 files in 8 states each: 40 cases. Damage that cannot be detected must at least cause no traceback."""
    original = folder / name
    copy = Path(
        shutil.copytree(original, tmp_path / name) if name == "disk" else shutil.copy(original, tmp_path / name)
    )
    data = DataConfig.model_validate({"sources": [{"name_or_path": str(copy)}]})
    for file in [path for path in [copy, *copy.rglob("*")] if path.is_file()]:
        for damage in (*DAMAGES, "missing"):
            with damaged(file, damage):
                try:
                    digest_sources(data)
                    write_raw_completions(data, tmp_path / "raw.parquet")
                except FimError as error:
                    message = str(error)
                else:
                    message = ""
            assert len(message.splitlines()) == 1 or damage in ("one bit", "missing", "{}"), (file.name, damage)
