"""The choice of what an editor shows."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sql_attacks import DDL as ATTACKED
from sql_attacks import PARSING
from starlette.testclient import TestClient

from fim_core.confidence.filter import CompletionFilter
from fim_core.metrics.sql_workers.statement import Statement, StatementChecker
from fim_core.metrics.sql_workers.worker import Limits
from fim_core.records.schema import Completion
from fim_core.serving.app import create_app
from fim_core.serving.choice import Choice, Chooser
from fim_core.serving.completer import Completer
from fim_core.serving.delta import Delta

DDL = "CREATE TABLE orders (id INT, city TEXT);"
STATE = Completion("SELECT ", " FROM orders", ddl_context=DDL)
WEIGHTS = {"logprob": 1.0, "parses": 2.0, "binds": 2.0, "does_not_bind": -2.0}


@pytest.fixture(scope="module")
def checker() -> Iterator[StatementChecker]:
    found = StatementChecker("duckdb")
    yield found
    found.close()


def deltas(text: str, logprob: float = -1.0) -> list[Delta]:
    return [Delta(text, 1, logprob), Delta("", 2, 0.0, "stop")]


def chosen(chooser: Chooser, greedy: list[Delta], *alternatives: list[Delta], state: Completion = STATE) -> Choice:
    steps = iter([list(alternatives[:1]), list(alternatives)])
    *waiting, choice = chooser.choose(state, greedy, steps)
    assert choice is not None
    assert not any(waiting)
    return choice


@pytest.mark.parametrize(
    ("text", "ddl", "expected"),
    [
        ("id", DDL, Statement(True, True)),
        ("ids", DDL, Statement(True, False)),
        ("ids", "", Statement(True, None)),
        ("id FROM (", DDL, Statement(False, False)),
        ("'", "", Statement(False, None)),
    ],
)
def test_a_statement_is_checked_without_a_gold_completion(
    checker: StatementChecker, text: str, ddl: str, expected: Statement
) -> None:
    assert checker.check("SELECT ", " FROM orders", [text, text], ddl) == [expected, expected]


def test_a_statement_that_takes_too_long_counts_as_not_parsed(checker: StatementChecker) -> None:
    deep = "(" * 3000 + "1" + ")" * 3000
    assert checker.check("SELECT ", "", [deep], "")[0].parses is False
    assert checker.check("SELECT ", "", ["1"], "")[0].parses is True


def test_a_sound_greedy_completion_stays_and_costs_no_alternatives(checker: StatementChecker) -> None:
    def never() -> Iterator[list[list[Delta]]]:
        raise AssertionError
        yield

    assert list(Chooser(checker, None, 4).choose(STATE, deltas("id", -9), never())) == [Choice(deltas("id", -9))]


def test_the_most_probable_sound_alternative_replaces_a_name_that_does_not_exist(checker: StatementChecker) -> None:
    chooser = Chooser(checker, None, 4)
    others = deltas("id", -3), deltas("wrong", -1), deltas("city", -2)
    assert chosen(chooser, deltas("made_up"), *others) == Choice(deltas("city", -2), alternative=True)
    assert chosen(chooser, deltas("made_up"), deltas("wrong")) == Choice(deltas("made_up"))
    unknown = Completion("SELECT ", " FROM orders")
    assert chosen(chooser, deltas("made_up"), *others, state=unknown) == Choice(deltas("made_up"))


def test_an_empty_completion_is_replaced_where_something_is_missing(checker: StatementChecker) -> None:
    chooser = Chooser(checker, None, 4)
    missing = Completion("SELECT id FROM orders WHERE ", ";", ddl_context=DDL)
    assert chosen(chooser, deltas(""), deltas("id > 1"), state=missing) == Choice(deltas("id > 1"), alternative=True)
    assert chosen(chooser, deltas(""), deltas(">"), state=missing) == Choice(deltas(""))
    nothing_missing = Completion("SELECT id ", " FROM orders", ddl_context=DDL)
    assert chosen(chooser, deltas(""), deltas(", city"), state=nothing_missing) == Choice(deltas(""))


def test_the_filter_hides_what_is_not_confident_enough(checker: StatementChecker) -> None:
    strict = Chooser(checker, CompletionFilter(WEIGHTS, -3.0, 0.5, "duckdb"), 1)
    shown = chosen(strict, deltas("id", -0.5))
    assert (shown.text, shown.shown) == ("id", True)
    assert shown.confidence == pytest.approx(1 / (1 + 2.718281828 ** -(2 + 2 - 0.5 - 3)))
    hidden = chosen(strict, deltas("id", -1.5))
    assert (hidden.text, hidden.shown, len(hidden.deltas)) == ("", False, 2)
    assert chosen(strict, deltas("made_up", -0.5)).shown is False
    assert chosen(strict, deltas(" ", -90)) == Choice(deltas(" ", -90)), "an empty completion shows nothing"
    assert strict.least_logprob == pytest.approx(3 - 4)


def test_an_alternative_does_not_hide_a_greedy_completion_that_is_shown(checker: StatementChecker) -> None:
    lenient = Chooser(checker, CompletionFilter(WEIGHTS, 0.0, 0.05, "duckdb"), 4)
    unlikely = deltas("id", -9)
    assert chosen(lenient, deltas("made_up", -1), unlikely).text == "made_up"
    assert chosen(lenient, deltas("made_up", -9), unlikely).shown is False
    assert chosen(lenient, deltas("made_up", -1), deltas("id", -2)).text == "id"


def test_an_empty_alternative_is_not_hidden(checker: StatementChecker) -> None:
    strict = Chooser(checker, CompletionFilter(WEIGHTS, 0.0, 0.99, "duckdb"), 4)
    state = Completion("SELECT id FROM orders WHERE id = 1", ";", ddl_context=DDL)
    assert chosen(strict, deltas(" AND ("), deltas("", -9), state=state) == Choice(deltas("", -9), alternative=True)


def test_definitions_that_exceed_a_limit_leave_a_completion_as_it_is() -> None:
    slow = StatementChecker("duckdb")
    slow._worker._limits = Limits(cpu_seconds=0.02, seconds=10)
    slow.close()
    many = "".join(f"CREATE TABLE t{number} (a INT, b TEXT);\n" for number in range(2000))
    assert slow.check("SELECT ", " FROM t1", ["a"], many) == [Statement(None, None)]
    state = Completion("SELECT ", " FROM t1", ddl_context=many)
    strict = Chooser(slow, CompletionFilter(WEIGHTS, 0.0, 1.0, "duckdb"), 4)
    assert chosen(strict, deltas("a"), deltas("b"), state=state) == Choice(deltas("a"))
    slow.close()


class ShortPatience(Limits):
    def patience(self) -> float:
        return 0.7


@pytest.fixture
def impatient() -> Iterator[StatementChecker]:
    found = StatementChecker("duckdb")
    found._worker._limits = ShortPatience(cpu_seconds=60, seconds=60)
    found._worker.close()
    found.check("", "", ["SELECT 1"], "")
    yield found
    found.close()


@pytest.mark.parametrize("ddl", [DDL, DDL + " " * 2**20], ids=["waits for an answer", "waits for the pipe"])
def test_a_worker_that_is_stopped_is_replaced(impatient: StatementChecker, ddl: str) -> None:
    process = impatient._worker._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    assert impatient.check("SELECT ", " FROM orders", ["ids"], ddl) == [Statement(True, False)]
    assert process.returncode == -signal.SIGKILL


def test_nothing_is_known_of_a_statement_whose_worker_was_stopped_twice(impatient: StatementChecker) -> None:
    found = impatient.check("", "", ["SELECT 1", PARSING["or_chain"]], ATTACKED)
    assert found == [Statement(True, True), Statement(None, None)]


@pytest.mark.parametrize("stream", [False, True])
def test_the_server_says_what_it_hides(filtered: Path, completer: Completer, stream: bool) -> None:
    call = {"prompt": "SELECT a", "suffix": " FROM t", "max_tokens": 6, "stream": stream}
    every = completer.complete(Completion("SELECT a", " FROM t"), max_tokens=6)
    assert every.text.strip()
    answers = {}
    for show_all in (False, True):
        hiding = Completer.load(filtered, show_all=show_all)
        app = create_app(hiding, model_name="fim", max_tokens=6, allowed_hosts=("testserver",))
        answers[show_all] = TestClient(app).post("/v1/completions", json=call)
    if stream:
        assert every.text not in answers[False].text
        assert '"shown":false' in answers[False].text
        assert '"finish_reason":"' in answers[False].text
    else:
        hidden, shown = answers[False].json(), answers[True].json()
        assert hidden["choices"][0]["text"] == ""
        assert hidden["usage"] == shown["usage"]
        assert hidden["fim"] == {"confidence": pytest.approx(0.5, abs=0.5), "shown": False, "alternative": False}
        assert shown["choices"][0]["text"] == every.text
        assert "fim" not in shown


def test_a_worker_that_is_stopped_ends_with_the_server(filtered: Path) -> None:
    completer = Completer.load(filtered)
    assert completer._chooser is not None
    process = completer._chooser.checker._worker._process
    assert process is not None
    app = create_app(completer, model_name="fim", max_tokens=6, allowed_hosts=("testserver",))
    with TestClient(app):
        os.kill(process.pid, signal.SIGSTOP)
    try:
        assert process.poll() == -signal.SIGKILL
    finally:
        completer.close()


def test_a_completer_chooses_among_candidates(checkpoint: Path, checker: StatementChecker) -> None:
    one, four = Completer.load(checkpoint), Completer.load(checkpoint, candidates=4, dialect="duckdb")
    replaced = 0
    for number in range(12):
        state = Completion(f"SELECT c{number} + ", " FROM t")
        greedy, choice = one.complete(state, max_tokens=5), four.complete(state, max_tokens=5)
        replaced += choice.alternative
        assert choice.alternative or choice.deltas == greedy.deltas
        [found] = checker.check(state.prefix, state.suffix, [choice.text], "")
        assert not choice.alternative or found.is_sound
    assert replaced, "the case must hold a completion that is replaced"
