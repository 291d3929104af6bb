"""The log of `fim serve`, and the way from it to training."""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tiny_pipeline import TINY, write_experiment

from fim_core.config import load_experiment
from fim_core.errors import FimError
from fim_core.folders.prompts import PromptsFolder
from fim_core.folders.raw import RawFolder
from fim_core.pipeline import run
from fim_core.records.parse import format_input, parse_input
from fim_core.records.schema import Completion
from fim_core.serving.app import create_app
from fim_core.serving.completer import Completer
from fim_core.serving.completion_log import COLUMNS, CompletionLog

FEEDBACK = {"id": "ID", "shown": "SHOWN", "action": "ACTION", "kept": "KEPT", "model": "MODEL"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda text: "<" not in text)


def client_of(completer: Completer, path: Path | None) -> TestClient:
    log = None if path is None else CompletionLog(path, "version")
    app = create_app(completer, model_name="fim", max_tokens=6, allowed_hosts=("127.0.0.1",), log=log)
    return TestClient(app, base_url="http://127.0.0.1")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


@pytest.fixture
def client(completer: Completer, path: Path) -> Iterator[TestClient]:
    with client_of(completer, path) as client:
        yield client


def complete(client: TestClient, prompt: str, **body: Any) -> tuple[str, str]:
    """Text and id of an answer."""
    answer = client.post("/v1/completions", json={"prompt": prompt, **body}).json()
    return answer["choices"][0]["text"], answer["fim"]["id"]


def report(client: TestClient, **body: Any) -> int:
    return client.post("/v1/feedback", json=body).status_code


@given(st.builds(Completion, *[TEXT] * 6))
def test_an_input_is_read_as_it_was_written(completion: Completion) -> None:
    assert parse_input(format_input(completion)) == completion


def test_from_serving_to_training(client: TestClient, path: Path, tmp_path: Path) -> None:
    """Exactly the accepted and the edited completions are trained on, and nothing but the source's feedback is configured."""
    texts, ids = {}, {}
    for name in ("accepted", "rejected", "edited", "edited_unknown", "ignored", "accepted_twice"):
        prompt = f"SELECT é_{name}, "
        texts[name], ids[name] = complete(client, prompt, suffix="\nFROM t", ddl_context="CREATE TABLE t (a INT);")
        assert texts[name], "the case needs some text"
    assert report(client, id=ids["accepted"], action="accepted") == 200
    assert report(client, id=ids["rejected"], action="Rejected") == 200
    assert report(client, id=ids["edited"], action="edited", kept="what I typed ☃") == 200
    assert report(client, id=ids["edited_unknown"], action="edited") == 200
    assert report(client, id=ids["accepted_twice"], action="rejected") == 200
    assert report(client, id=ids["accepted_twice"], action="accepted") == 200
    data = {**TINY["data"], "sources": [{"name_or_path": str(path), "feedback": FEEDBACK}], "eval_fraction": 0}
    checks = {"prompts_not_empty": {"severity": "warn"}}
    results = run(load_experiment(write_experiment(tmp_path, data=data, checks=checks)), until="fim_prompts")
    raw, prompts = (results[name].artifact for name in ("raw_completions", "fim_prompts"))
    assert (raw.counts["rows"], raw.counts["reports"], raw.counts["warnings"]) == (6, 6, [])
    table = pq.read_table(RawFolder(raw.path).rows).to_pylist()
    assert {row["request_id"]: row["output"] for row in table} == {ids[name]: texts[name] for name in ids}
    names = {row["row_id"]: next(name for name in ids if ids[name] == row["request_id"]) for row in table}
    trained = pq.read_table(PromptsFolder(prompts.path).rows).to_pylist()
    assert {names[row["row_id"]]: (row["prefix"], row["suffix"], row["response"]) for row in trained} == {
        "accepted": ("SELECT é_accepted, ", "\nFROM t", texts["accepted"]),
        "accepted_twice": ("SELECT é_accepted_twice, ", "\nFROM t", texts["accepted_twice"]),
        "edited": ("SELECT é_edited, ", "\nFROM t", "what I typed ☃"),
    }
    assert all("CREATE TABLE t (a INT);" in row["prompt"] for row in trained)
    assert prompts.counts["rejected"] == {"no_action": 1, "no_kept_text": 1, "rejected_by_user": 1}
    total = prompts.counts["feedback"]["total"]
    assert [total[name] for name in ("shown", "accepted", "edited", "rejected")] == [6, 2, 2, 1]
    (by_model,) = prompts.counts["feedback"]["by_model"]
    assert by_model == {**total, "model": table[0]["model_version"]}
    assert by_model["model"]
    assert {check.name: check.passed for check in results["fim_prompts"].checks}["rejected_share"]


def test_a_row_has_the_state_and_what_was_generated(client: TestClient, path: Path, completer: Completer) -> None:
    context = {"sql_history": "select 1;", "last_few_executed": "select 2;", "file_content": "-- f\r\n"}
    text, name = complete(client, "SELECT \n", suffix=" FROM t", type="fillMe_expr", **context)
    (row,) = rows_of(path)
    assert tuple(row) == COLUMNS
    assert (row["ID"], row["TYPE"], row["MODEL"], row["SHOWN"]) == (name, "fillMe_expr", "version", True)
    assert (row["OUTPUT"], row["ACTION"], row["KEPT"], row["CONFIDENCE"]) == (text, "", "", None)
    state = Completion("SELECT \n", " FROM t", **context)
    assert parse_input(row["INPUT"]) == state
    assert completer.complete(state, max_tokens=6).text == text
    assert row["LATENCY_MS"] > 0
    assert row["TIME"].endswith("+00:00")


def test_streams_are_logged_and_warm_ups_are_not(client: TestClient, path: Path) -> None:
    streamed = client.post("/v1/completions", json={"prompt": "SELECT a", "stream": True}).text
    last = json.loads(streamed.split("\n\n")[-3].removeprefix("data: "))
    infill = client.post("/infill", json={"input_prefix": "", "prompt": "SELECT a", "input_suffix": ""}).json()
    warm = client.post("/infill", json={"input_prefix": "", "prompt": "", "input_suffix": "", "n_predict": 0}).json()
    assert "fim" not in warm
    assert client.post("/v1/completions", json={"prompt": 5}).status_code == 400
    rows = rows_of(path)
    assert [row["ID"] for row in rows] == [last["fim"]["id"], infill["fim"]["id"]]
    assert rows[0]["OUTPUT"] == rows[1]["OUTPUT"] == infill["content"]
    assert report(client, id=last["fim"]["id"], action="accepted") == 200


def test_what_is_hidden_is_logged(completer: Completer, filtered: Path, path: Path) -> None:
    with client_of(Completer.load(filtered), path) as client:
        text, name = complete(client, "SELECT a", suffix=" FROM t")
        assert report(client, id=name, action="edited", kept="typed") == 200
    row, _ = rows_of(path)
    generated = completer.complete(Completion("SELECT a", " FROM t"), max_tokens=6).text
    assert (text, row["OUTPUT"], row["SHOWN"]) == ("", generated, False)
    assert 0 < row["CONFIDENCE"] < 1


def test_feedback_that_cannot_be_right_is_refused(client: TestClient, path: Path, completer: Completer) -> None:
    _, name = complete(client, "SELECT ")
    assert report(client, id="unknown", action="accepted") == 404
    assert report(client, id=name, action="liked") == 400
    assert report(client, id=name) == 400
    assert client.post("/v1/feedback", content=b"{}").status_code == 415
    assert len(rows_of(path)) == 1
    with client_of(completer, None) as without:
        assert report(without, id=name, action="accepted") == 404
        assert "fim" not in without.post("/v1/completions", json={"prompt": "SELECT "}).json()


def test_the_log_is_private_and_appended_to(client: TestClient, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text('{"ID": "earlier"}')
    assert CompletionLog(path, "m").is_private
    complete(client, "SELECT ")
    path.rename(path.with_name("moved.jsonl"))
    complete(client, "SELECT ")
    assert rows_of(path.with_name("moved.jsonl"))[0] == {"ID": "earlier"}
    assert (len(rows_of(path)), len(rows_of(path.with_name("moved.jsonl")))) == (1, 2)
    path.chmod(0o644)
    assert not CompletionLog(path, "m").is_private


def test_a_log_that_cannot_be_written_is_a_mistake_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FimError, match=r"\*\.jsonl"):
        CompletionLog(tmp_path / "log.csv", "m")
    with pytest.raises(FimError, match=r"none/log\.jsonl cannot be written"):
        CompletionLog(tmp_path / "none" / "log.jsonl", "m")


def test_errors_of_the_file_are_logged_once_and_break_nothing(
    client: TestClient, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, name = complete(client, "SELECT secret_text ")
    path.unlink()
    path.mkdir()
    with caplog.at_level(logging.ERROR):
        assert [complete(client, "SELECT secret_text ")[0] for _ in range(3)] == [text] * 3
        assert report(client, id=name, action="accepted") == 503
    (record,) = caplog.records
    assert "cannot be written" in record.message
    assert "secret_text" not in caplog.text
    path.rmdir()
    assert report(client, id=name, action="accepted") == 200
    assert [row["ACTION"] for row in rows_of(path)] == ["accepted"]


def test_half_a_row_is_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = CompletionLog(path, "m"), os.write
    assert log.report("a", "accepted", "")
    before = path.read_bytes()
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:10]))
    assert not log.report("b", "accepted", "")
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert log.report("c", "accepted", "")
    assert [row["ID"] for row in rows_of(path)] == ["a", "c"]


def test_rows_of_several_writers_do_not_mix(path: Path) -> None:
    def write(log: CompletionLog, name: str) -> None:
        for _ in range(50):
            log.report(name, "edited", name * 5000)

    logs = [CompletionLog(path, "m") for _ in range(2)]
    threads = [threading.Thread(target=write, args=(logs[n % 2], str(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = rows_of(path)
    assert len(rows) == 200
    assert all(row["KEPT"] == row["ID"] * 5000 for row in rows)


def test_only_the_last_completions_can_be_reported_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fim_core.serving.completion_log.MOST_IDS", 2)
    log = CompletionLog(path, "m")
    names = [log.new_id() for _ in range(3)]
    assert [log.knows(name) for name in names] == [False, True, True]
