"""What several commands take: a recipe, overrides, --force; no argument may be empty."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cwdpo.errors import RecipeError, one_line

__all__ = ["Columns", "Command", "Force", "Overrides", "RecipeFile", "columns_of", "folder_name"]

_EMPTY = re.compile(r"(--[\w-]+=)?")


class Command(TyperCommand):
    """A command that refuses empty arguments (an empty path is the current folder), no numbers, and special files."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse.

        Raises:
            RecipeError: An argument is empty, a number is not finite or beyond 64 bits, or a path is a pipe or device.
        """
        for before, word in zip(["", *args], args, strict=False):
            if _EMPTY.fullmatch(word):
                name = word or before if word or before.startswith("-") else "an argument"
                raise RecipeError(
                    f"{name.rstrip('=')}: is empty (is a shell variable not set?); leave it out or fill it"
                )
        rest = super().parse_args(ctx, args)
        for param in self.params:
            values: Any = ctx.params.get(str(param.name))
            for value in values if isinstance(values, list | tuple) else [values]:
                if (why := _unusable(value)) is not None:
                    raise RecipeError(f"{max(param.opts, key=len)} {one_line(value)}: {why}")
        return rest


def _unusable(value: object) -> str | None:
    """Return why a number or path can be of no use to any command."""
    if isinstance(value, int | float) and not abs(value) < 2**63:
        return "must be finite and below 2^63; give another number"
    if not isinstance(value, str | Path):
        return None
    try:
        mode = Path(value).stat().st_mode
    except (OSError, ValueError) as error:
        unheard_of = isinstance(error, FileNotFoundError | NotADirectoryError) or not isinstance(value, Path)
        return None if unheard_of else f"{getattr(error, 'strerror', error)}; give another path"
    plain = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    return None if plain else "is a device, pipe or socket; give a file or a folder"


Force = Annotated[bool, typer.Option("--force", help="Replace files that this command reads, or did not write.")]
Columns = Annotated[
    str | None,
    typer.Option(metavar="MAP", help="What columns are called in the data: '{prompt: question, images: picture}'."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. stage2.beta=0.2."),
]
RecipeFile = Annotated[Path, typer.Argument(help="A recipe, as `cwdpo init` writes it.")]


def folder_name(path: str) -> str:
    """Return a folder's name from a model's path: `runs/a/stage2/model` is `runs-a-stage2-model`."""
    return "-".join(part for part in Path(path).parts if part.strip("./"))[-120:]


def columns_of(text: str | None) -> dict[str, str]:
    """Return the map that `--columns` says.

    Raises:
        RecipeError: It is none.
    """
    from cwdpo.recipe.load_recipe import load_recipe

    return load_recipe(overrides=[f"data.columns={text}"]).data.columns if text else {}
