"""Rejected completions that the model still writes, as labels of the completion filter."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from fim_core.config import Experiment
from fim_core.evaluation.predictors import Predictor
from fim_core.evaluation.rejected import accepted_rows, rejected_completions
from fim_core.evaluation.run import evaluate
from fim_core.evaluation.selection import fits
from fim_core.folders.report import ReportFolder
from fim_core.inference.row_progress import RowProgress
from fim_core.metrics.rows import CompletedRow
from fim_core.prompts import write_fim_prompts
from fim_core.records.schema import Completion
from fim_core.records.sources import write_raw_completions
from fim_core.serving.completer import Completer
from fim_core.tokenization import tokenize_prompts
from tests.fim_core.conftest import MODEL, Evaluated, save_checkpoint

DDL = "CREATE TABLE orders (id INT, total INT);"
COLUMNS = ("TYPE", "INPUT", "OUTPUT", "SHEET", "SHOWN", "ACTION", "reason")
LONG = " " * 3000


def state(number: int) -> Completion:
    return Completion(f"SELECT id FROM orders WHERE total > {number} AND ", ";", ddl_context=DDL)


def row(number: int, output: str, sheet: str, action: str, *, history: str = "") -> list[str]:
    one = state(number)
    context = {"sql_history": history, "ddl_context": DDL, "last_few_executed": "", "file_content": ""}
    parts = [json.dumps(context), one.prefix + "<fillMe>" + one.suffix]
    text = json.dumps([{"type": "text", "text": part} for part in parts])
    return ["expr", text, output, sheet, "true", action, "of the user"]


class Feedback:
    """An export with feedback on a tiny model's completions, and what the pipeline makes of it."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast, rows: list[list[str]], group_by: str) -> None:
        with (folder / "export.csv").open("w", newline="") as out:
            csv.writer(out).writerows([COLUMNS, *rows])
        source = {"name_or_path": str(folder / "export.csv"), "feedback": {"shown": "SHOWN", "action": "ACTION"}}
        self.experiment = Experiment.model_validate(
            {
                "name": "tiny",
                "model": {"config": dict(MODEL), "tokenizer": {"vocab_size": 640}},
                "data": {
                    "sources": [source],
                    "eval_fraction": 0.4,
                    "template": "plain",
                    "group_by": group_by,
                    "max_length": 512,
                },
                "evaluation": {"max_rows": 200, "max_new_tokens": 6, "bootstrap_samples": 100},
            }
        )
        data, model = self.experiment.data, self.experiment.model
        self.raw, self.prompts, self.dataset = folder / "raw.parquet", folder / "prompts", folder / "dataset"
        write_raw_completions(data, self.raw)
        write_fim_prompts(self.raw, self.prompts, data=data, model=model, tokenizer=tokenizer, seed=1)
        tokenize_prompts(self.prompts, self.dataset, data=data)
        self.checkpoint = folder / "checkpoint"
        save_checkpoint(self.checkpoint, self.experiment, tokenizer, seed=1)

    def rejected(self, most: int | None = None) -> list[CompletedRow]:
        options = self.experiment.evaluation.model_copy(update={"max_rows": most})
        predictor = Predictor.load(self.checkpoint)
        return rejected_completions(predictor, self.prompts, self.experiment.data, options, RowProgress())


@pytest.fixture(scope="module")
def written(evaluated: Evaluated) -> list[str]:
    """What the tiny model writes for each state."""
    completer = Completer.load(evaluated.checkpoint)
    texts = [completer.complete(state(number), max_tokens=6).text for number in range(40)]
    assert all(text.strip() for text in texts)
    return texts


def export(written: list[str]) -> list[list[str]]:
    accepted = [row(100 + number, f"id = {number}", f"sheet{number % 10}", "accepted") for number in range(60)]
    return [
        *accepted,
        *(row(number, written[number], f"sheet{number % 10}", "rejected") for number in range(30)),
        row(30, written[30], "only rejected", "rejected"),
        row(31, written[31] + " x", "only rejected", "rejected"),
        row(32, "", "only rejected", "rejected"),
        row(33, written[33], "only rejected", "rejected", history=LONG),
        row(34, written[34], "", "rejected"),
        row(35, written[35], "only rejected", ""),
    ]


def test_rejected_completions_of_groups_that_are_not_trained_on(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, written: list[str]
) -> None:
    feedback = Feedback(tmp_path, tokenizer, export(written), group_by="SHEET")
    prompts = pq.read_table(feedback.prompts / "prompts.parquet").to_pylist()
    raw = {row["row_id"]: row for row in pq.read_table(feedback.raw).to_pylist()}
    trained_sheets = {raw[row["row_id"]]["SHEET"] for row in prompts if row["split"] == "train"}
    assert 0 < len(trained_sheets) < 10
    found = feedback.rejected()
    expected = {
        row["output"] for row in raw.values() if row["action"] == "rejected" and row["SHEET"] not in trained_sheets
    }
    left_out = {written[31] + " x", ""}
    assert {row.row.row_id for row in found} == {
        row_id
        for row_id, row in raw.items()
        if row["action"] == "rejected"
        and row["SHEET"] not in trained_sheets
        and row["output"] not in left_out
        and LONG not in row["input"]
    }
    assert left_out <= expected
    for one in found:
        assert one.predicted.strip() == raw[one.row.row_id]["output"].strip()
        assert one.rejected
        assert not one.is_correct
        assert one.prediction.logprobs
        assert set(one.sql) == {"statement_parses", "statement_binds"}
    assert len(feedback.rejected(most=3)) <= 3


def test_groups_are_those_of_the_prompts_table(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, written: list[str]
) -> None:
    """The same rows, once accepted and once rejected, are in the same groups."""
    for group_by in ("SHEET", "statement", "source"):
        groups = []
        for action in ("accepted", "rejected"):
            folder = tmp_path / group_by / action
            folder.mkdir(parents=True)
            rows = [row(number, written[number], f"s{number % 3}", action) for number in range(6)]
            feedback = Feedback(folder, tokenizer, [*rows, row(99, "1", "other", "accepted")], group_by)
            if action == "accepted":
                table = pq.read_table(feedback.prompts / "prompts.parquet").to_pylist()
                groups.append({row["row_id"].rsplit("-")[-1]: row["group"] for row in table})
            else:
                groups.append({one.row.row_id.rsplit("-")[-1]: one.row.group for one in feedback.rejected()})
        accepted, rejected = groups
        assert rejected.items() <= accepted.items()
        assert len(rejected) >= 4


def test_a_prompt_that_is_trained_on_is_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, written: list[str]
) -> None:
    rows = [
        *(row(number, f"id = {number}", "", "accepted") for number in range(20)),
        *(row(number, written[number], "", "rejected") for number in range(30)),
    ]
    feedback = Feedback(tmp_path, tokenizer, rows, group_by="statement")
    table = pq.read_table(feedback.prompts / "prompts.parquet").to_pylist()
    trained = {row["prefix"] for row in table if row["split"] == "train"}
    assert {one.row.prefix for one in feedback.rejected()} == {state(number).prefix for number in range(30)} - trained


@pytest.mark.parametrize("actions", [("accepted", "accepted"), ("accepted", "rejected")], ids=["none", "trained on"])
def test_an_export_without_rejected_completions_to_use(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, written: list[str], actions: tuple[str, str]
) -> None:
    rows = [row(number, f"id = {number}", f"sheet{number}", "accepted") for number in range(12)]
    plain = Feedback(tmp_path, tokenizer, rows, group_by="SHEET")
    table = pq.read_table(plain.prompts / "prompts.parquet").to_pylist()
    number = next(int(row["row_id"].rsplit("-")[-1]) for row in table if row["split"] == "train")
    (tmp_path / "second").mkdir()
    rows += [row(20 + number, written[number], f"sheet{number}", action) for action in actions]
    assert Feedback(tmp_path / "second", tokenizer, rows, group_by="SHEET").rejected() == []


def test_the_report_counts_the_verdicts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, written: list[str]) -> None:
    feedback = Feedback(tmp_path, tokenizer, export(written), group_by="SHEET")
    (tmp_path / "out").mkdir()
    events: list[dict] = []
    evaluate(
        feedback.experiment,
        checkpoint=feedback.checkpoint,
        raw=feedback.raw,
        prompts=feedback.prompts,
        dataset=feedback.dataset,
        output=tmp_path / "out",
        on_event=events.append,
    )
    show = ReportFolder(tmp_path / "out").read()["show"]
    rejected = feedback.rejected()
    assert show["feedback"]["fitted_to"]["rejected"] == sum(map(fits, rejected))
    assert show["feedback"]["measured_on"]["rejected"] == len(rejected) - sum(map(fits, rejected))
    assert show["feedback"]["used"] is False
    assert "rejected completions" in {event["task"] for event in events}


def test_accepted_rows_are_those_of_the_export(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, written: list[str]
) -> None:
    feedback = Feedback(tmp_path, tokenizer, export(written), group_by="SHEET")
    raw = pq.read_table(feedback.raw).to_pylist()
    some = [row["row_id"] for row in raw[::2]]
    assert accepted_rows(feedback.raw, some) == {row["row_id"] for row in raw[::2] if row["action"] == "accepted"}
