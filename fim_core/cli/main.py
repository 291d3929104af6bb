"""The `fim` command: one subcommand a module, each loaded without the heavy libraries that it may use later."""

from __future__ import annotations

import sys

import typer

from fim_core.cli import (
    benchmark,
    champion,
    complete,
    convert,
    demo_data,
    evaluate,
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
for command in (demo_data, convert, train, evaluate, summary, champion, complete, serve, benchmark, garbage, verify):
    command.register(app)


def main() -> None:
    """Run the command line; a user's mistake ends with its sentence on standard error and exit code 2. So do a full disk
    and a place that cannot be written."""
    try:
        app()
    except Exception as error:
        told = error if isinstance(error, FimError) else system_error(error)
        if told is None:
            raise
        typer.echo(f"fim: {told}", err=True)
        sys.exit(USER_ERROR)
