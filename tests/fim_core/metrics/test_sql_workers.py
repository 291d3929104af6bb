"""SQL workers against judging in this process, and SQL that exceeds a limit."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sql_attacks import DDL, DEEP, DEFINITIONS, PARSING, RUNNING

from fim_core.errors import FimError
from fim_core.evaluation.scores import judge_predictions, score
from fim_core.metrics import sql
from fim_core.metrics.execution import Sandbox
from fim_core.metrics.metric import Metric
from fim_core.metrics.rows import EvalRow, Prediction
from fim_core.metrics.sql_workers.measures import STAGES, SqlRow, judge
from fim_core.metrics.sql_workers.pool import JudgedRow, Limit, SqlWorkers, Worker, judge_row
from fim_core.metrics.sql_workers.worker import Limits

GOOD = "SELECT a FROM t WHERE b > 1"
STOPPED = {Limit.TIMEOUT, Limit.OUT_OF_MEMORY}


def row(gold: str = GOOD, *texts: str, ddl: str = DDL) -> SqlRow:
    return SqlRow("", ";", gold, texts, "snowflake", ddl)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """With less time than usual, for the sake of the tests."""
    worker = Worker(Limits(cpu_seconds=0.5, seconds=1))
    yield worker
    worker.close()


@pytest.fixture
def usual() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def process_id(worker: Worker) -> int:
    assert worker._process is not None
    return worker._process.pid


def judged_here(row: SqlRow, sandbox: Sandbox) -> JudgedRow:
    """The same without a worker."""
    answers = list(judge(row, STAGES, sandbox))
    measures = {}
    for place, text in enumerate(row.texts, start=1):
        found = answers[place * len(STAGES) : (place + 1) * len(STAGES)]
        measures[text] = {name: value for part in found for name, value in part.items()}
    return JudgedRow(measures, answers[len(STAGES) - 1].excluded)


ORDINARY = [
    row(GOOD, GOOD, "SELECT a FROM t", "select A from T where b > 1", "SELECT c FROM t", "SELECT", "", "'"),
    row("SELECT a FROM t WHERE 1 = 0", "SELECT a FROM t"),
    row("SELECT a FROM", "SELECT a FROM t", GOOD),
    row("SELECT 'open", "SELECT a FROM t", "SELECT  'open"),
    row("SELECT c FROM t", GOOD),
    row("DELETE FROM t", "DELETE FROM t WHERE a = 1"),
    row("SELECT '\ud800' FROM t", "SELECT 'ß漢🙂' FROM t", "SELECT '\ud800\x00' FROM t"),
    row(GOOD),
    replace(row("SELECT s FROM t", "SELECT 'x' FROM t"), database={"T": [(1, 2, "x")]}),
]


def test_every_measure_of_a_stage_is_used_and_the_other_way_round() -> None:
    metrics = [metric for metric in vars(sql).values() if isinstance(metric, Metric)]
    used = {measure.name for metric in metrics for measure in metric.measures}
    used |= {"statement_parses", "statement_binds"}  # features of the completion filter
    assert used == {name for stage in STAGES.values() for name in stage.measures}


def test_workers_equal_judging_in_this_process(sandbox: Sandbox) -> None:
    workers = SqlWorkers(2)
    try:
        assert workers.judge(ORDINARY) == [judged_here(each, sandbox) for each in ORDINARY]
    finally:
        workers.close()


@pytest.mark.parametrize("attack", ["repeat", "levenshtein", "sleep"])
def test_a_stopped_prediction_fails_without_affecting_others(worker: Worker, sandbox: Sandbox, attack: str) -> None:
    bomb = RUNNING[attack]
    judged = judge_row(row(GOOD, "SELECT a FROM t", bomb, GOOD), worker)
    assert judged.limits.keys() == {bomb}
    assert judged.limits[bomb] == (Limit.OUT_OF_MEMORY if attack == "repeat" else Limit.TIMEOUT)
    assert judged.measures[bomb] | {"exact_match_sql": 0, "parses": 1, "execution_match": 0} == judged.measures[bomb]
    others = judged_here(row(GOOD, "SELECT a FROM t", GOOD), sandbox)
    assert {text: judged.measures[text] for text in others.measures} == others.measures
    assert judged.excluded is judged.gold_limit is None


@pytest.mark.parametrize(
    ("gold", "ddl", "applies"),
    [
        (RUNNING["repeat"], DDL, {"parses": 1, "binds": 1, "execution_match": None}),
        (PARSING["or_chain"], DDL, {"parses": 1, "binds": None, "execution_match": None}),
        (GOOD, DEFINITIONS["wide_check"], {"parses": 1, "binds": None, "execution_match": None}),
    ],
)
def test_measures_do_not_apply_after_the_stage_that_stops_the_gold_completion(
    worker: Worker, gold: str, ddl: str, applies: dict[str, float | None]
) -> None:
    judged = judge_row(row(gold, "SELECT a FROM t", "SELECT b FROM t", ddl=ddl), worker)
    assert judged.gold_limit in STOPPED
    for measures in judged.measures.values():
        assert {name: measures[name] for name in applies} == applies
        assert measures["exact_match_sql"] == 0


def test_a_document_that_takes_too_long_to_tokenize_is_compared_by_words() -> None:
    worker = Worker(Limits(cpu_seconds=0.2, seconds=20))
    long = "SELECT a -- " + "x 'y' " * 2_000_000
    judged = judge_row(replace(row("a  b", "a b", "a c"), prefix=long.replace("--", "")), worker)
    worker.close()
    assert judged.gold_limit == Limit.TIMEOUT
    assert [measures["exact_match_sql"] for measures in judged.measures.values()] == [True, False]
    assert {measures["parses"] for measures in judged.measures.values()} == {None}


def test_a_worker_that_ends_in_another_way_is_counted_as_crashed() -> None:
    worker = Worker(Limits(seconds=60))
    thread = threading.Thread(target=lambda: kill_soon(worker))
    thread.start()
    judged = judge_row(row(RUNNING["sleep"]), worker)
    thread.join()
    worker.close()
    assert judged.gold_limit == Limit.CRASHED


def kill_soon(worker: Worker) -> None:
    while worker._requests == 0:
        time.sleep(0.01)
    os.kill(process_id(worker), signal.SIGKILL)


def test_memory_used_by_earlier_rows_does_not_change_verdicts(worker: Worker) -> None:
    judge_row(row(), worker)
    first = process_id(worker)
    judged = judge_row(row(GOOD, RUNNING["repeat"]), worker)
    assert judged.limits == {RUNNING["repeat"]: Limit.OUT_OF_MEMORY}
    assert worker._process is None, "the second process was ended as well"
    judge_row(row(), worker)
    assert process_id(worker) != first


def test_the_process_has_hard_limits_and_inherits_nothing(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.close()
    monkeypatch.setenv("A_SECRET", "key")
    monkeypatch.setenv("DUCKDB_ANYTHING", "1")
    judge_row(row(), worker)
    process = Path(f"/proc/{process_id(worker)}")
    lines = (process / "limits").read_text().splitlines()[1:]
    limits = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    assert limits["Max file size"] == limits["Max core file size"] == ["0", "0"]
    soft, hard = limits["Max address space"]
    assert soft == hard
    assert int(hard) < 2 * 2**30
    names = {entry.partition("=")[0] for entry in (process / "environ").read_text().split("\0") if entry}
    assert names <= {"PYTHONPATH", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME"}
    assert {int(fd.name) for fd in (process / "fd").iterdir()} <= {0, 1, 2, 3}
    assert os.readlink(process / "cwd") == "/"
    loaded = (process / "maps").read_text()
    assert "duckdb" in loaded
    assert not any(heavy in loaded for heavy in ("libtorch", "pyarrow", "numpy"))


def test_unread_answers_are_not_taken_for_those_of_the_next_row(worker: Worker, sandbox: Sandbox) -> None:
    answers = worker.answers(row("SELECT", "SELECT a"), list(STAGES))
    next(answers)
    answers.close()
    assert judge_row(ORDINARY[0], worker) == judged_here(ORDINARY[0], sandbox)


def test_a_worker_ends_with_its_parent(worker: Worker) -> None:
    judge_row(row(), worker)
    process = worker._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    process.stdin = None
    worker.close()


def test_workers_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(FimError, match=r"does not start.*sql_workers"):
        SqlWorkers(1).judge([row()])


def test_scores_count_rows_and_predictions_that_were_stopped() -> None:
    bomb = RUNNING["repeat"]
    rows = [EvalRow(f"r{i}", "kind", "g", "", ";", gold, DDL) for i, gold in enumerate((GOOD, bomb, GOOD))]
    predictions = {"model": [Prediction(bomb), Prediction(GOOD), Prediction(GOOD)], "base": [Prediction(GOOD)] * 3}
    scores = score(judge_predictions(rows, predictions, dialect="snowflake"))
    assert scores.executions == {"compared": 2, "out_of_memory": 1}
    assert scores.over_limit == {"accepted": {"out_of_memory": 1}, "model": {"out_of_memory": 1}}
    assert scores.columns["model"]["execution_match"].tolist()[::2] == [0, 1]
    assert scores.columns["base"]["execution_match"].tolist()[::2] == [1, 1]


@pytest.mark.parametrize("attack", DEEP)
def test_deep_queries_get_a_verdict(worker: Worker, attack: str) -> None:
    judged = judge_row(row(GOOD, DEEP[attack], GOOD), worker)
    assert judged.measures[GOOD]["execution_match"] == 1
    assert judged.measures[DEEP[attack]]["exact_match_sql"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("attack", RUNNING | PARSING)
def test_every_attack_is_stopped_as_gold_and_as_prediction(usual: Worker, attack: str) -> None:
    query = (RUNNING | PARSING)[attack]
    as_prediction = judge_row(row(GOOD, query, GOOD), usual)
    as_gold = judge_row(row(query, GOOD), usual)
    assert as_prediction.measures[query]["execution_match"] == 0
    assert as_prediction.measures[GOOD]["execution_match"] == 1
    assert as_gold.measures[GOOD]["execution_match"] is None
    # What the parser gives up by itself needs no limit.
    if attack in RUNNING:
        assert as_prediction.limits[query] in STOPPED
        assert as_gold.gold_limit in STOPPED


@pytest.mark.slow
@pytest.mark.parametrize("ddl", DEFINITIONS)
def test_definitions_that_take_too_long(usual: Worker, ddl: str) -> None:
    judged = judge_row(row(GOOD, GOOD, ddl=DEFINITIONS[ddl]), usual)
    assert judged.gold_limit in STOPPED
    assert judged.measures[GOOD] | {"exact_match_sql": 1, "parses": 1, "binds": None} == judged.measures[GOOD]


@pytest.mark.slow
def test_twenty_such_rows_in_five_hundred_cost_less_than_a_minute() -> None:
    attacks = list((RUNNING | PARSING).values())
    golds = [f"SELECT a FROM t WHERE b > {i}" for i in range(500)]
    seconds, found = [], []
    for number in (0, 20):
        rows = [EvalRow(f"r{i}", "kind", "g", "", ";", gold, DDL) for i, gold in enumerate(golds)]
        wrote = [Prediction(attacks[i % len(attacks)] if i < number else gold) for i, gold in enumerate(golds)]
        predictions = {"model": wrote, "base": wrote, "empty": [Prediction("")] * 500}
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        begun = time.monotonic()
        found.append(score(judge_predictions(rows, predictions, dialect="snowflake")))
        seconds.append((time.monotonic() - begun) / busy)
    plain, attacked = found
    assert seconds[1] - seconds[0] < 60
    assert sum(attacked.over_limit["model"].values()) >= len(RUNNING)
    assert plain.over_limit == {}
    same = attacked.columns["model"]["execution_match"][20:] == plain.columns["model"]["execution_match"][20:]
    assert same.all()
