"""`fim complete`: one completion on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fim_core.cli.model import CandidatesOption, CheckpointOption, ExperimentOption, ShowOption, load_completer
from fim_core.errors import FimError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("complete")(complete)


def complete(
    sql: Annotated[Path, typer.Argument(help="SQL with <fillMe> at the cursor; - reads standard input.")] = Path("-"),
    ddl: Annotated[Path | None, typer.Option(help="File with table definitions (ddl_context).")] = None,
    history: Annotated[Path | None, typer.Option(help="File with recent statements (sql_history).")] = None,
    executed: Annotated[
        Path | None, typer.Option(help="File with the last executed statements (last_few_executed).")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="File open in the editor (file_content).")] = None,
    checkpoint: CheckpointOption = None,
    experiment: ExperimentOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion in tokens.")] = 128,
    show: ShowOption = "confident",
    candidates: CandidatesOption = None,
) -> None:
    """Print the completion at <fillMe>, without a trailing newline; nothing if the model is not confident enough."""
    from fim_core.records.schema import Completion

    prefix, suffix = _split_at_cursor(read_text(sql))
    completion = Completion(
        prefix=prefix,
        suffix=suffix,
        sql_history=read_text(history),
        ddl_context=read_text(ddl),
        last_few_executed=read_text(executed),
        file_content=read_text(file),
    )

    completer, _ = load_completer(checkpoint, experiment, show, candidates)
    if completer.notice:
        typer.echo(f"fim: {completer.notice}", err=True)
    choice = completer.complete(completion, max_tokens=max_tokens)
    if not choice.shown:
        typer.echo(
            f"fim: the completion is not shown, as its confidence is only {choice.confidence:.1%}; see it with --show all.",
            err=True,
        )
    # Bytes, so that line ends are printed as generated.
    typer.echo(choice.text.encode(), nl=False)


def read_text(path: Path | None) -> str:
    """Read a UTF-8 file, or standard input for `-`, with its line endings unchanged; empty without a path.

    Raises:
        FimError: the file cannot be read, or is not UTF-8.
    """
    if path is None:
        return ""
    try:
        content = sys.stdin.buffer.read() if path == Path("-") else path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise FimError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise FimError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def _split_at_cursor(sql: str) -> tuple[str, str]:
    from fim_core.records.schema import PLACEHOLDER

    match sql.split(PLACEHOLDER):
        case [prefix, suffix]:
            return prefix, suffix
        case parts:
            found = len(parts) - 1
            raise FimError(f"The SQL contains {PLACEHOLDER} {found} times; put it there once, at the cursor.")
