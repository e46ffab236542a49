"""Negatives for other tools: our JSON lines, or TRL's preference columns as JSON lines or Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cwdpo.data.schema import REJECTED, PromptGroup
from cwdpo.data.write_groups import write_groups
from cwdpo.errors import RunError
from cwdpo.files import write_jsonl

__all__ = ["export_negatives", "trl_rows"]

_ROWS_AT_ONCE = 256


def trl_rows(groups: Sequence[PromptGroup]) -> Iterator[dict[str, Any]]:
    """Yield a row for every pair: `images`, `prompt`, `chosen`, `rejected` as conversations, and what else is known."""
    for group in groups:
        rejected = group.by_role(REJECTED)
        for number, response in enumerate(rejected, 1):
            yield {
                "id": group.id if len(rejected) == 1 else f"{group.id}#{number}",
                "images": [image.path for image in group.images],
                "prompt": [_turn(m["role"], m["content"]) for m in group.messages],
                "chosen": [_turn("assistant", group.chosen.text)],
                "rejected": [_turn("assistant", response.text)],
                "source": response.source,
                "difficulty": response.difficulty,
            }


def _turn(role: str, content: Any) -> dict[str, Any]:
    parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return {"role": role, "content": [{"type": p["type"], "text": p.get("text")} for p in parts]}


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
    if out.name.endswith(".trl.jsonl"):
        rows = list(trl_rows(groups))
        write_jsonl(out, [_without_nulls(row) for row in rows])
        return len(rows)
    if out.suffix == ".jsonl":
        write_groups(out, groups, images)
        return len(groups)
    if out.suffix == ".parquet":
        return _write_parquet(groups, out)
    raise RunError(f"{out}: --export must end in .jsonl (our format), .trl.jsonl or .parquet (TRL's columns)")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _write_parquet(groups: Sequence[PromptGroup], out: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, List, Value

    text = Value("string")
    turns = List({"role": text, "content": List({"type": text, "text": text})})
    columns = {"id": text, "images": List(Image()), "prompt": turns, "chosen": turns, "rejected": turns}
    schema: Any = Features({**columns, "source": text, "difficulty": text}).arrow_schema
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    count = 0
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            for start in range(0, len(groups), _ROWS_AT_ONCE):
                part = groups[start : start + _ROWS_AT_ONCE]
                rows = [{**row, "images": [_bytes(Path(path)) for path in row["images"]]} for row in trl_rows(part)]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                count += len(rows)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _bytes(path: Path) -> dict[str, Any]:
    return {"bytes": path.read_bytes(), "path": path.name}
