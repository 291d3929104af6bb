"""`fim complete` and `fim serve` as commands."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import typer
from typer.testing import CliRunner

from fim_core.cli import complete
from fim_core.errors import FimError
from fim_core.records.schema import Completion
from fim_core.serving.completer import Completer

SERVE = "import typer; from fim_core.cli import serve; app = typer.Typer(); serve.register(app); app()"


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    complete.register(app)
    return app


def test_complete_prints_only_the_completion(
    app: typer.Typer, checkpoint: Path, completer: Completer, tmp_path: Path
) -> None:
    sql = "SELECT \r\n<fillMe>\r\nFROM t"
    contexts = {"ddl": "create table t (a int);\n", "history": "select 1", "executed": "select 2", "file": "-- f\n"}
    options = ["--checkpoint", str(checkpoint), "--max-tokens", "9"]
    for name, text in contexts.items():
        (tmp_path / name).write_bytes(text.encode())
        options += [f"--{name}", str(tmp_path / name)]
    (tmp_path / "query.sql").write_bytes(sql.encode())

    expected = completer.complete(
        Completion(
            "SELECT \r\n",
            "\r\nFROM t",
            ddl_context=contexts["ddl"],
            sql_history=contexts["history"],
            last_few_executed=contexts["executed"],
            file_content=contexts["file"],
        ),
        max_tokens=9,
    ).text
    assert expected, "the case needs some text"
    from_file = CliRunner().invoke(app, [str(tmp_path / "query.sql"), *options])
    assert from_file.stdout_bytes == expected.encode()
    from_stdin = CliRunner().invoke(app, options, input=sql.encode())
    assert from_stdin.stdout_bytes == expected.encode()
    assert from_stdin.exit_code == 0


@pytest.mark.parametrize("sql", ["SELECT 1", "SELECT <fillMe>, <fillMe>"])
def test_complete_needs_one_cursor(app: typer.Typer, checkpoint: Path, sql: str) -> None:
    result = CliRunner().invoke(app, ["--checkpoint", str(checkpoint)], input=sql)
    assert isinstance(result.exception, FimError)
    assert "<fillMe>" in str(result.exception)
    assert result.stdout == ""


def test_complete_names_files_that_cannot_be_read(app: typer.Typer, tmp_path: Path) -> None:
    missing = CliRunner().invoke(app, [str(tmp_path / "none.sql")])
    assert isinstance(missing.exception, FimError)
    (tmp_path / "latin.sql").write_bytes(b"SELECT '\xe9' <fillMe>")
    other = CliRunner().invoke(app, [str(tmp_path / "latin.sql")])
    assert isinstance(other.exception, FimError)
    assert "UTF-8" in str(other.exception)


def test_complete_names_what_a_checkpoint_lacks(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--checkpoint", str(tmp_path)], input="<fillMe>")
    assert isinstance(result.exception, FimError)
    assert "config.json" in str(result.exception)


@contextmanager
def server(checkpoint: Path, log: Path) -> Iterator[str]:
    """A running `fim serve` on a free port of this machine; yields its address."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, "--checkpoint", str(checkpoint), "--port", "0"],
            stdout=output,
            stderr=output,
        )
    try:
        address = None
        while address is None:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
            found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
            address = found[0] if found else None
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def post(address: str, body: dict[str, object]) -> bytes:
    request = Request(
        f"{address}/v1/completions", json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=60) as response:
        return response.read()


def test_serve(checkpoint: Path, completer: Completer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    prompts = [f"SELECT customer_secret_{number}, " for number in range(4)]
    with server(checkpoint, log) as address:
        with urlopen(f"{address}/health", timeout=60) as response:
            assert json.load(response) == {"status": "ok"}
        # A client that reads one chunk of a stream and leaves does not keep the others waiting.
        request = Request(
            f"{address}/v1/completions",
            json.dumps({"prompt": prompts[0], "stream": True, "max_tokens": 300}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urlopen(request, timeout=60) as response:
            assert response.readline().startswith(b"data: {")
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda prompt: json.loads(post(address, {"prompt": prompt})), prompts))
        streamed = post(address, {"prompt": prompts[0], "stream": True})
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer["choices"][0]["text"] == completer.complete(Completion(prompt, ""), max_tokens=128).text
    assert streamed.endswith(b"data: [DONE]\n\n")
    assert "POST /v1/completions" in log.read_text(), "the log is the one of this server"
    assert "customer_secret" not in log.read_text()
