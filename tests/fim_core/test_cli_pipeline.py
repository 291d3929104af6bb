"""Progress output of pipeline commands: failed checks, and the note after Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_pipeline import write_experiment

from fim_core.cli.pipeline import open_experiment, run_pipeline
from fim_core.cli.row_bars import RowBars
from fim_core.config import load_experiment
from fim_core.inference.row_progress import RowProgress


def test_a_failed_check_of_severity_warn_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_experiment(tmp_path, checks={"empty_outputs": {"max_rows": 0}})
    for _ in range(2):  # made, then reused
        run_pipeline(load_experiment(path), until="tokenized_dataset")
        said = capsys.readouterr().err
        assert said.count("fim_prompts: check failed (warn): empty_outputs: ") == 1
        assert "Expected: Empty completions are a minority" in said


def test_progress_of_assets_training_and_evaluation_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load_experiment(write_experiment(tmp_path))
    run_pipeline(experiment, until="trained_checkpoint")
    said = capsys.readouterr().err
    assert re.search(r"^fim_prompts [0-9a-f]{16}: made in [\d.]+ s$", said, re.MULTILINE)
    assert re.findall(r"^step (\d+) of 3: loss [\d.]+, [\d.,]+ rows/s$", said, re.MULTILINE) == ["1"]
    assert re.search(r"^step 3 of 3: held-out loss [\d.]+$", said, re.MULTILINE)
    run_pipeline(experiment, until="fim_prompts")
    said = capsys.readouterr().err
    assert re.search(r"^fim_prompts [0-9a-f]{16}: reused$", said, re.MULTILINE)

    monkeypatch.setattr("fim_core.cli.pipeline.SECONDS_BETWEEN_LINES", 0.0)
    run_pipeline(experiment, until="evaluation_report")
    said = capsys.readouterr().err
    total = experiment.evaluation.max_rows
    assert f"model, completions: 0 of {total} rows, 0.0 rows/s\n" in said
    assert re.search(
        rf"^model, completions: {total} of {total} rows, [\d.,]+ rows/s, 0:00:00 left$", said, re.MULTILINE
    )
    assert re.search(rf"^model, losses of gold completions: {total} of {total} rows", said, re.MULTILINE)


def test_a_terminal_gets_one_bar_per_model_and_task(capsys: pytest.CaptureFixture[str]) -> None:
    bars = RowBars()
    for model, task in (("model", "completions"), ("model", "losses"), ("champion", "completions")):
        advance = RowProgress(bars.show, model).start(task, 7)
        advance(3)
        advance(4)
    said = capsys.readouterr().err
    for title in ("model, completions", "model, losses", "champion, completions"):
        assert re.search(rf"{title}: 100%.* 7/7 ", said)


@pytest.mark.slow
def test_ctrl_c_prints_where_the_next_run_resumes(tmp_path: Path) -> None:
    path = write_experiment(
        tmp_path, max_steps=None, epochs=40, checkpoint={"type": "deepspeed", "save_every_n_steps": 2}
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "from fim_core.cli.main import main; main()", "train", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        while not list((tmp_path / "store").glob("work/trained_checkpoint/*/state/step-4")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    found = re.search(r"Stopped\. The next run resumes from step (\d+)\.", said)
    assert found, said
    [work] = (tmp_path / "store" / "work" / "trained_checkpoint").iterdir()
    assert (work / "state" / f"step-{found[1]}").is_dir()


def test_the_notice_about_an_arctic_training_file_is_printed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text("type: sft\nmodel: {name_or_path: m}\ndata: {sources: [d], dl_num_workers: 1}\n")
    open_experiment(path)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("theirs: read as a file of ArcticTraining.") == 1
    assert "data.dl_num_workers: " in printed.err
    open_experiment(write_experiment(tmp_path))
    assert capsys.readouterr().err == ""
