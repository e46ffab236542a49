"""Negatives for other tools: our JSON lines, or TRL's preference columns as JSON lines or Parquet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cwdpo.data.schema import REJECTED, PromptGroup
from cwdpo.data.write_groups import with_image_files, write_groups
from cwdpo.errors import RunError
from cwdpo.files import write_jsonl

__all__ = ["export_negatives", "trl_rows"]


def trl_rows(groups: Sequence[PromptGroup], images: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for every pair: `images`, `prompt`, `chosen`, `rejected` as conversations, and what else is known.

    Args:
        groups: Prompts with their negatives.
        images: Where images that are no files are written.
    """
    for group in (with_image_files(group, images) for group in groups):
        rejected = group.by_role(REJECTED)
        for number, response in enumerate(rejected, 1):
            yield {
                "id": group.id if len(rejected) == 1 else f"{group.id}#{number}",
                "images": [image.path for image in group.images],
                "prompt": [_turn(m["role"], m["content"]) for m in group.messages],
                "chosen": [_turn("assistant", group.chosen.text)],
                "rejected": [_turn("assistant", response.text)],
                "source": response.source,
                **({} if response.difficulty is None else {"difficulty": response.difficulty}),
            }


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": content}] if isinstance(content, str) else [*content]}


def export_negatives(groups: Sequence[PromptGroup], out: Path, images: Path | None = None) -> int:
    """Write negatives to a file: `.jsonl` is our format, `.trl.jsonl` and `.parquet` have TRL's columns.

    Parquet holds the image files' bytes and the features that `datasets` reads; JSON lines hold their paths.

    Args:
        groups: Prompts with their negatives.
        out: The file.
        images: As `write_groups` takes it.

    Returns:
        Rows written.

    Raises:
        RunError: The ending is of no known format.
    """
    folder = (images or out.with_name(f"{out.stem}_images")).absolute()
    if out.name.endswith(".trl.jsonl"):
        rows = list(trl_rows(groups, folder))
        write_jsonl(out, rows)
        return len(rows)
    if out.suffix == ".jsonl":
        write_groups(out, groups, images)
        return len(groups)
    if out.suffix == ".parquet":
        return _write_parquet(trl_rows(groups, folder), out)
    raise RunError(f"{out}: --export must end in .jsonl (our format), .trl.jsonl or .parquet (TRL's columns)")


def _write_parquet(rows: Iterator[dict[str, Any]], out: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, List, Value

    text = Value("string")
    turns = List({"role": text, "content": List({"type": text, "text": text})})
    columns = {"id": text, "images": List(Image()), "prompt": turns, "chosen": turns, "rejected": turns}
    schema: Any = Features({**columns, "source": text, "difficulty": text}).arrow_schema
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary, count = out.with_name(f".{out.name}.tmp"), 0
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            while part := list(itertools.islice(rows, 256)):
                whole = [{**row, "images": [_content(Path(path)) for path in row["images"]]} for row in part]
                writer.write_table(pa.Table.from_pylist(whole, schema=schema))
                count += len(part)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _content(path: Path) -> dict[str, Any]:
    return {"bytes": path.read_bytes(), "path": path.name}
