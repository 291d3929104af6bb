"""What users did with completions, as metadata of `fim_prompts` and in `fim summary`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from tiny_pipeline import TINY, write_experiment

from fim_assets.metadata import metadata_of
from fim_assets.metadata.feedback import describe_feedback
from fim_core.cli.summary import feedback_lines
from fim_core.config import load_experiment
from fim_core.pipeline import run

ROWS = [
    ("x|y", "customer_text_1 ", "yes", "accepted", "customer_text_1 ", "v1"),
    ("x|y", "customer_text_2 ", "yes", "rejected", "", "v1"),
    ("x|y", "customer_text_2 ", "yes", "rejected", "", "v1"),
    ("", "abcdefghijklmnop", "yes", "edited", "abcdefghijkl", "v2"),
    ("", "typed", "no", "", "", ""),
]


def shown_of(folder: Path, *, show_samples: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata of fim_prompts, and its counts."""
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["TYPE", "INPUT", "OUTPUT", "S", "A", "K", "M"])
        for number, (kind, *values) in enumerate(ROWS):
            items = [{"type": "text", "text": f"select {number} <fillMe>"}]
            writer.writerow([kind, json.dumps(items), *values])
    source = {
        "name_or_path": str(folder / "rows.csv"),
        "feedback": {"shown": "s", "action": "a", "kept": "k", "model": "m"},
    }
    data = {**TINY["data"], "sources": [source], "eval_fraction": 0}
    experiment = load_experiment(write_experiment(folder, data=data, metadata={"show_samples": show_samples}))
    result = run(experiment, until="fim_prompts")["fim_prompts"]
    return metadata_of(result, experiment), result.artifact.counts


@pytest.mark.parametrize("show_samples", [False, True])
def test_figures_tables_and_texts_only_if_samples_are_shown(tmp_path: Path, show_samples: bool) -> None:
    shown, counts = shown_of(tmp_path, show_samples=show_samples)
    assert shown["acceptance_rate"] == 0.25
    assert shown["retained_characters"] == 0.875
    assert shown["edit_similarity_of_edited"] == 0.75
    assert shown["feedback"].value == (
        "| TYPE | shown | accepted | edited | rejected | acceptance rate | retained characters | edit similarity of edited |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| **all** | 4 | 1 | 1 | 2 | 25.0% | 87.5% | 75.0% |\n"
        "| x\\|y | 3 | 1 | 0 | 2 | 33.3% | 100.0% | – |\n"
        "| (none) | 1 | 0 | 1 | 0 | 0.0% | 75.0% | 75.0% |"
    )
    assert shown["feedback_by_model"].value.splitlines()[0].startswith("| model | shown |")
    assert shown["feedback_by_model"].value.splitlines()[2:] == [
        "| v1 | 3 | 1 | 0 | 2 | 33.3% | 100.0% | – |",
        "| v2 | 1 | 0 | 1 | 0 | 0.0% | 75.0% | 75.0% |",
    ]
    assert shown["rejected_most"].value.splitlines()[2:] == ["| x\\|y | up to 40 | 2 | 3 | 66.7% |"]
    if show_samples:
        texts = shown["texts_rejected_most"].value
        assert texts.splitlines()[2:] == ["| 2 | customer\\_text\\_2 |"]
    plain = [value.value if isinstance(value, dg.MetadataValue) else value for value in shown.values()]
    assert ("customer" in repr(plain)) == show_samples
    assert list(feedback_lines(counts)) == [
        (
            "feedback",
            "4 shown, of which 1 accepted, 1 edited, 2 rejected; acceptance rate 25.0%; retained characters 87.5%; edit "
            "similarity of edited 75.0%",
        ),
        ("feedback by model", "v1: 3 shown, acceptance rate 33.3%; v2: 1 shown, acceptance rate 0.0%"),
    ]
    earlier = {name: value for name, value in counts["feedback"].items() if name != "by_model"}
    assert list(feedback_lines({"feedback": earlier})) == list(feedback_lines(counts))[:1]
    assert "feedback_by_model" not in describe_feedback(earlier, None)


def test_without_feedback_there_is_nothing_to_show() -> None:
    """Nor in versions that were made before there was feedback."""
    assert describe_feedback(None, None) == {}
    assert list(feedback_lines({"feedback": None})) == list(feedback_lines({})) == []
