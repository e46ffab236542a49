"""`cwdpo caption`: captions of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cwdpo.cli.terminal.options import Force

__all__ = ["caption"]


def caption(
    model: Annotated[str, typer.Option(help="Model directory or hub id.")],
    images: Annotated[Path, typer.Option(help="An image, or a folder of images.")],
    out: Annotated[Path, typer.Option(help="JSON-lines file to write, one line per image.")],
    prompt: Annotated[str | None, typer.Option(help="Question to ask; by default for one sentence.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size, in images.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Longest caption, in tokens.")] = 48,
    force: Force = False,
) -> None:
    """Caption images. Resumes when stopped."""
    from cwdpo.cli.terminal.console import quiet_libraries
    from cwdpo.evaluation.captioning import caption_images, image_files
    from cwdpo.files import write_jsonl
    from cwdpo.outputs import output

    quiet_libraries()
    files = image_files(images)
    with output(out, "caption", reads=files, force=force) as draft:
        kept, sizes = draft.keep(), {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
        captions = caption_images(model, files, kept, prompt=prompt, **sizes)
        rows = [{"image": str(file), "caption": text} for file, text in zip(files, captions, strict=True)]
        write_jsonl(draft.file, rows)
    typer.echo(f"wrote {len(files)} captions to {out}")
