"""`fim serve`: a local completions server for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fim_core.cli.model import CandidatesOption, CheckpointOption, ExperimentOption, ShowOption, load_completer

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
) -> None:
    """Serve completions to editors: OpenAI's /v1/completions, llama.cpp's /infill, Mistral's FIM API, Ollama's /api/generate."""
    import uvicorn

    from fim_core.cli.complete import read_text
    from fim_core.serving.app import create_app
    from fim_core.serving.connections import ConnectionLimits, limited_protocol

    ddl_context = read_text(ddl)
    completer, folder = load_completer(checkpoint, experiment, show, candidates)
    local = host in LOOPBACK
    if not local:
        typer.echo(f"fim: anyone who can reach {host} can use this server; it has no access control.", err=True)
    app = create_app(
        completer,
        model_name=model_name,
        max_tokens=max_tokens,
        allowed_hosts=LOCAL_HOST_HEADERS if local else ("*",),
        ddl_context=ddl_context,
    )
    if completer.notice:
        typer.echo(f"fim: {completer.notice}", err=True)
    typer.echo(f"Serving {folder} as model {model_name}.", err=True)
    protocol = limited_protocol(ConnectionLimits())
    uvicorn.run(app, host=host, port=port, log_level="info", http=protocol, ws="none", server_header=False)
