"""`fim serve`: a local completions server for editors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fim_core.cli.model import CandidatesOption, CheckpointOption, ExperimentOption, ShowOption, load_completer

if TYPE_CHECKING:
    from fim_core.serving.completion_log import CompletionLog

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOCAL_HOST_HEADERS = ("127.0.0.1", "localhost", "[::1]")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    checkpoint: CheckpointOption = None,
    experiment: ExperimentOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. There is no access control: keep it local.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8080,
    model_name: Annotated[str, typer.Option(help="Model name that clients see.")] = "fim",
    max_tokens: Annotated[int, typer.Option(min=1, help="Default max_tokens of a request.")] = 128,
    ddl: Annotated[
        Path | None, typer.Option(help="File with table definitions, for requests without ddl_context.")
    ] = None,
    show: ShowOption = "confident",
    candidates: CandidatesOption = None,
    log: Annotated[
        Path | None,
        typer.Option(
            help="JSON-lines file (*.jsonl) to append each completion and the users' feedback to, for training. It will contain "
            "customer text. Default: no log."
        ),
    ] = None,
) -> None:
    """Serve completions to editors: OpenAI's /v1/completions, llama.cpp's /infill, Mistral's FIM API, Ollama's /api/generate."""
    import uvicorn

    from fim_core.cli.complete import read_text
    from fim_core.serving.app import create_app
    from fim_core.serving.connections import ConnectionLimits, limited_protocol

    ddl_context = read_text(ddl)
    completer, folder = load_completer(checkpoint, experiment, show, candidates)
    completions = None if log is None else open_log(log, folder)
    local = host in LOOPBACK
    if not local:
        typer.echo(f"fim: anyone who can reach {host} can use this server; it has no access control.", err=True)
    app = create_app(
        completer,
        model_name=model_name,
        max_tokens=max_tokens,
        allowed_hosts=LOCAL_HOST_HEADERS if local else ("*",),
        ddl_context=ddl_context,
        log=completions,
    )
    if completer.notice:
        typer.echo(f"fim: {completer.notice}", err=True)
    typer.echo(f"Serving {folder} as model {model_name}.", err=True)
    protocol = limited_protocol(ConnectionLimits())
    uvicorn.run(app, host=host, port=port, log_level="info", http=protocol, ws="none", server_header=False)


def open_log(path: Path, checkpoint: Path) -> CompletionLog:
    """Open the log, and say on standard error what it contains.

    Raises:
        FimError: it cannot be written.
    """
    from fim_core.serving.completion_log import CompletionLog
    from fim_core.store.places import VERSION_PATTERN

    parts = reversed(checkpoint.resolve().parts)
    version = next((part for part in parts if re.fullmatch(VERSION_PATTERN, part)), checkpoint.resolve().name)
    log = CompletionLog(path, version)
    typer.echo(f"fim: {path} will contain the text of every completion and its context.", err=True)
    if not log.is_private:
        typer.echo(f"fim: other users can read {path}; `chmod 600 {path}` prevents that.", err=True)
    return log
