"""The command line: one file a command. Nothing heavy is imported before a command needs it, so that help comes at once."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from qwenbox import __version__
from qwenbox.errors import QwenboxError, UsageError

from .bench import bench
from .chat import chat
from .compare import compare
from .eval import evaluate
from .launch import launch
from .ps import ps
from .pull import pull
from .quantize import quantize
from .run import run
from .serve import serve
from .start import Browser, Port, start
from .stop import stop
from .verify import verify

app = typer.Typer(
    name="qwenbox",
    help="Run a Qwen model of your own: one person, one machine, one service. Without a command: choose a model, serve it, open its page.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(chat)
app.command()(run)
app.command()(pull)
app.command()(ps)
app.command()(stop)
app.command()(bench)
app.command("eval")(evaluate)
app.command()(quantize)
app.command()(compare)
app.command()(verify)
app.command(context_settings={"allow_extra_args": True, "allow_interspersed_args": False})(launch)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qwenbox {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")] = False,
    port: Port = None,
    browser: Browser = True,
) -> None:
    # A library's log records are for a service's log; a command says what matters itself.
    logging.getLogger("qwenbox").addHandler(logging.NullHandler())
    if context.invoked_subcommand is None:
        raise typer.Exit(start(port, browser))
    if port is not None or not browser:
        raise UsageError(f"--port and --no-browser before a command mean nothing; options of {context.invoked_subcommand} stand behind it")


def main() -> None:
    """Runs the command of this process's arguments, and ends the process with its exit code: 130 after Ctrl-C, an error's own after an error."""
    try:
        app()
    except QwenboxError as error:
        print(f"qwenbox: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
