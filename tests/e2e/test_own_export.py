"""configs/own_data.yaml on a realistic export: the held-out rows are not seen in training."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from random import Random

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from fim_core.config import Experiment, load_experiment
from fim_core.prompts import write_fim_prompts
from fim_core.prompts.split import FEWEST_GROUPS, TOLERANCE
from fim_core.records.sources import write_raw_completions

EVERYBODY_TYPES = ["SELECT CURRENT_DATE", "SHOW TABLES", "SELECT 1", "USE WAREHOUSE load_wh"]
ROWS = 2000


def write_export(path: Path) -> None:
    """50 worksheets; each statement is completed a few times while it is typed, and some statements are common to all."""
    rng = Random(5)
    rows = []
    for sheet in range(50):
        while sum(row["WORKSHEET_ID"] == f"ws{sheet}" for row in rows) < ROWS // 50:
            common = rng.random() < 0.2
            statement = (
                rng.choice(EVERYBODY_TYPES) if common else f"SELECT c{rng.randrange(900)}, c{sheet} FROM t{sheet}"
            )
            for _ in range(1 if common else rng.randint(1, 4)):
                cut = rng.randrange(1, len(statement))
                context = json.dumps({"sql_history": "SELECT 1;", "ddl_context": "CREATE TABLE t (c INT);"})
                texts = (context, statement[:cut] + "<fillMe>")
                items = json.dumps([{"type": "text", "text": text} for text in texts])
                rows.append({"WORKSHEET_ID": f"ws{sheet}", "INPUT": items, "OUTPUT": statement[cut:]})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[:ROWS])


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("own")
    write_export(folder / "completions.csv")
    content = yaml.safe_load(Path("configs/own_data.yaml").read_text())
    content["data"]["sources"][0]["name_or_path"] = str(folder / "completions.csv")
    content["data"]["num_proc"] = 1
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    return load_experiment(folder / "own.yaml")


@pytest.mark.parametrize(("group_by", "fraction"), [("statement", None), ("worksheet_id", 0.25)])
def test_the_held_out_rows_mean_something(
    group_by: str, fraction: float | None, experiment: Experiment, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    changes = {"group_by": group_by} | ({"eval_fraction": fraction} if fraction else {})
    data = experiment.data.model_copy(update=changes)
    write_raw_completions(data, tmp_path / "raw.parquet")
    counts = write_fim_prompts(
        tmp_path / "raw.parquet", tmp_path / "p", data=data, model=experiment.model, tokenizer=tokenizer, seed=42
    )
    assert counts.rows_in == ROWS == counts.rows_kept
    assert abs(counts.eval / counts.rows_kept - data.eval_fraction) <= TOLERANCE
    assert counts.held_out_groups >= FEWEST_GROUPS
    assert (counts.left_out > 0) == (group_by == "worksheet_id")
