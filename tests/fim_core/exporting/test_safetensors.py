"""The folder of safetensors, and what an export replaces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fim_core.errors import FimError
from fim_core.exporting.export import export_safetensors, name_of
from fim_core.exporting.output import RECORD, export_folder
from fim_core.prompt_format.recipe import RECIPE
from fim_core.records.schema import Completion
from fim_core.serving.completer import Completer


def test_folder_equals_the_checkpoint_up_to_rounding(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "metrics.jsonl").write_text("{}\n")
    done = export_safetensors(checkpoint, tmp_path / "out")
    (checkpoint / "metrics.jsonl").unlink()
    before, after = load_file(checkpoint / "model.safetensors"), load_file(done.weights[0])
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight.to(torch.bfloat16)) for name, weight in before.items())
    for name in ("tokenizer.json", "generation_config.json", RECIPE):
        assert (done.folder / name).read_bytes() == (checkpoint / name).read_bytes()
    assert not (done.folder / "metrics.jsonl").exists()
    assert "rounded to bfloat16" in (done.folder / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(done.folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert len(AutoTokenizer.from_pretrained(done.folder)) == len(AutoTokenizer.from_pretrained(checkpoint))
    state = Completion("SELECT ", " FROM t")
    assert Completer.load(done.folder).prompt_ids(state) == Completer.load(checkpoint).prompt_ids(state)


def test_several_files_of_weights(checkpoint: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    for name in (RECIPE, "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((checkpoint / name).read_bytes())
    done = export_safetensors(tmp_path / "model", tmp_path / "out")
    assert len(done.weights) > 1
    index = json.loads((done.folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * model.num_parameters()
    exported = AutoModelForCausalLM.from_pretrained(done.folder)
    assert all(
        torch.equal(a.to(torch.bfloat16), b.to(torch.bfloat16))
        for a, b in zip(model.parameters(), exported.parameters(), strict=True)
    )


def test_name(checkpoint: Path, tmp_path: Path) -> None:
    assert name_of(checkpoint) == checkpoint.name
    (tmp_path / "manifest.json").write_text(json.dumps({"experiment": "sql", "version": "0123456789abcdef"}))
    assert name_of(tmp_path) == "sql-0123456789abcdef"


def write(folder: Path, text: str) -> None:
    with export_folder(folder, {"model": "m"}) as new:
        (new / "file").write_text(text)


def test_an_export_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    write(tmp_path / "out", "two")
    assert (tmp_path / "out" / "file").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_export_leaves_the_earlier_one(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    with pytest.raises(IsADirectoryError), export_folder(tmp_path / "out", {}) as new:
        new.write_text("not a file")
    assert (tmp_path / "out" / "file").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def changed(folder: Path) -> None:
    write(folder, "one")
    (folder / "file").write_text("by hand")


def extended(folder: Path) -> None:
    write(folder, "one")
    (folder / "notes.txt").write_text("mine")


def foreign(folder: Path) -> None:
    folder.mkdir()
    (folder / RECORD).write_text("{}")


def a_file(folder: Path) -> None:
    folder.write_text("mine")


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (changed, "file has changed"),
        (extended, "notes.txt was added"),
        (foreign, "not an export of this command"),
        (a_file, "not an export of this command"),
    ],
)
def test_anything_else_is_kept(make: object, cause: str, tmp_path: Path) -> None:
    make(tmp_path / "out")  # type: ignore[operator]
    with pytest.raises(FimError, match=cause):
        write(tmp_path / "out", "two")


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "one")
    assert (tmp_path / "out" / "file").read_text() == "one"


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FimError, match="There is no checkpoint in"):
        export_safetensors(tmp_path, tmp_path / "out")
