"""What several commands take: a recipe, overrides, --force; no argument may be empty."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cwdpo.errors import RecipeError

__all__ = ["Command", "Force", "Overrides", "RecipeFile", "folder_name"]

_EMPTY = re.compile(r"(--[\w-]+=)?")


class Command(TyperCommand):
    """A command that refuses empty arguments (an empty path is the current folder) and numbers that are none."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse.

        Raises:
            RecipeError: An argument is empty, or a number is not finite or beyond 64 bits.
        """
        for before, word in zip(["", *args], args, strict=False):
            if _EMPTY.fullmatch(word):
                name = word or before if word or before.startswith("-") else "an argument"
                raise RecipeError(
                    f"{name.rstrip('=')}: is empty (is a shell variable not set?); leave it out or fill it"
                )
        rest = super().parse_args(ctx, args)
        for param in self.params:
            value = ctx.params.get(str(param.name))
            for number in value if isinstance(value, list | tuple) else [value]:
                if isinstance(number, int | float) and not abs(number) < 2**63:
                    name = max(param.opts, key=len)
                    raise RecipeError(f"{name} {number}: must be finite and below 2^63; give another number")
        return rest


Force = Annotated[bool, typer.Option("--force", help="Replace files that this command reads, or did not write.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key of the recipe, e.g. stage2.beta=0.2."),
]
RecipeFile = Annotated[Path, typer.Argument(help="A recipe, as `cwdpo init` writes it.")]


def folder_name(path: str) -> str:
    """Return a folder's name from a model's path: `runs/a/stage2/model` is `runs-a-stage2-model`."""
    return "-".join(part for part in Path(path).parts if part.strip("./"))[-120:]
