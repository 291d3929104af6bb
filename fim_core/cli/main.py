"""The `fim` command: one module per subcommand. Heavy libraries are imported when a subcommand runs."""

from __future__ import annotations

import sys

import typer

from fim_core.cli import (
    benchmark,
    champion,
    complete,
    convert,
    demo_data,
    estimate,
    evaluate,
    export,
    garbage,
    serve,
    summary,
    train,
    verify,
)
from fim_core.errors import FimError, system_error

USER_ERROR = 2

app = typer.Typer(
    help="Train, evaluate and serve fill-in-the-middle SQL completion models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    demo_data,
    convert,
    estimate,
    train,
    evaluate,
    summary,
    champion,
    complete,
    serve,
    export,
    benchmark,
    garbage,
    verify,
):
    command.register(app)


def main() -> None:
    """Run the command line. A user's mistake, a full disk or an unwritable path prints one message on standard error and
    exits with code 2."""
    try:
        app()
    except Exception as error:
        message = error if isinstance(error, FimError) else system_error(error)
        if message is None:
            raise
        typer.echo(f"fim: {message}", err=True)
        sys.exit(USER_ERROR)
