"""The program: every file of this folder is a command, a function or a group of the file's name."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from typing import Annotated

import typer

from cwdpo import cli
from cwdpo._version import __version__
from cwdpo.cli.terminal.options import Command

__all__ = ["app"]

app = typer.Typer(
    name="cwdpo",
    help="Align a vision-language model and see what the training does to it: SFT-C, then CW-DPO, with probes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
    epilog="Start with [bold]cwdpo demo[/]; your own data: [bold]cwdpo init[/], [bold]check[/], [bold]train[/].",
)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(  # pyright: ignore[reportUnusedFunction]
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Align a vision-language model and see what the training does to it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on import it names optional kernels that are missing


def _register() -> None:
    names = [file.name for file in pkgutil.iter_modules(cli.__path__) if not file.ispkg and file.name != "app"]
    for name in names:
        module = importlib.import_module(f"{cli.__name__}.{name}")
        command = getattr(module, name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, cls=Command)(command)
        for former, forward in getattr(module, "FORMER", {}).items():
            settings = {"allow_extra_args": True, "ignore_unknown_options": True}
            app.command(former, hidden=True, add_help_option=False, context_settings=settings)(forward)


_register()
