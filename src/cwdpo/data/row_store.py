"""Rows on their way from a source to a run: in a SQLite file, so that no number of them fills the memory."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from cwdpo.data.row_context import StoredCell
from cwdpo.data.row_values import RowError
from cwdpo.data.schema import ImageRef, PromptGroup, Response
from cwdpo.data.splits import SharedOut, prompt_digest, share_out
from cwdpo.data.tables.image_tar import TarMember
from cwdpo.data.tables.web_image import WebImage

__all__ = ["Scratch"]

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA cache_size = -16000;
BEGIN;
CREATE TABLE groups (place INTEGER PRIMARY KEY, row INTEGER, number INTEGER, id TEXT UNIQUE, roles TEXT,
                     image INTEGER, others TEXT, rest TEXT);
CREATE TABLE images (image INTEGER PRIMARY KEY, ref TEXT, digest BLOB);
CREATE INDEX where_images_are ON images (ref);
CREATE TABLE problems (image INTEGER PRIMARY KEY, problem TEXT);
CREATE TABLE unfit (row INTEGER PRIMARY KEY, problem TEXT);
CREATE TABLE bad (row INTEGER PRIMARY KEY, kind TEXT, fields TEXT);
CREATE TABLE sorted (turn INTEGER PRIMARY KEY, place INTEGER, rank INTEGER);
CREATE TABLE ranks (place INTEGER PRIMARY KEY, rank INTEGER);
"""

_AT_ONCE = 4096


class Scratch:
    """The good rows of a source, their images, and how they are shared out; gone with its folder.

    Nothing is committed and nothing is kept from a crash: whoever was killed reads the source again.

    Args:
        path: The file, which is not there yet.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.executescript(_TABLES)
        self._tables: list[tuple[str, Any]] = []
        self._image = lru_cache(4096)(self._image_number)
        self._ref = lru_cache(4096)(self._read_ref)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    # -- rows ----------------------------------------------------------------------------------------------------------

    def number_of(self, name: str) -> int | None:
        """Return the number of the row that has an id already, or None."""
        found = self._db.execute("SELECT number FROM groups WHERE id = ?", (name,)).fetchone()
        return None if found is None else found[0]

    def add(self, row: int, number: int, group: PromptGroup, table: Any = None, file: str = "") -> None:
        """Keep a group.

        Args:
            row: Its row, counted from 1 over all rows.
            number: Its row as messages name it.
            group: The group.
            table: The table on disk where image bytes may stay.
            file: Its name.

        Raises:
            RowError: It holds something that JSON cannot.
        """
        if table is not None and not any(table is known for _, known in self._tables):
            self._tables.append((file, table))
        roles = json.dumps(Counter(r.role for r in group.responses))
        try:
            rest = json.dumps(group.to_json(()), ensure_ascii=False).encode("utf-8").decode("utf-8")
        except (TypeError, ValueError, RecursionError) as error:
            raise RowError("wrong type", f"facts hold what JSON cannot ({error})") from None
        images = [self._image(self._packed(ref)) for ref in group.images] or [self._prompt(prompt_digest(group))]
        others = json.dumps(images) if len(images) > 1 else None
        values = (row, number, group.id, roles, images[0], others, rest)
        self._db.execute("INSERT INTO groups VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", values)

    def _image_number(self, ref: str) -> int:
        found = self._db.execute("SELECT image FROM images WHERE ref = ?", (ref,)).fetchone()
        if found is None:
            return self._db.execute("INSERT INTO images VALUES (NULL, ?, NULL)", (ref,)).lastrowid or 0
        return found[0]

    def _prompt(self, digest: str) -> int:
        """Return the number that stands for the image of prompts that have none."""
        number = self._image(f"prompt {digest}")
        self._db.execute("UPDATE images SET digest = ? WHERE image = ?", (bytes.fromhex(digest), number))
        return number

    def set_aside(self, row: int, fields: tuple[str, int, str, str, str]) -> None:
        """Keep what is told of a bad row: file, number, kind, reason, its beginning."""
        self._db.execute("INSERT INTO bad VALUES (?, ?, ?)", (row, fields[2], json.dumps(fields)))

    def bad_rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield what was kept of bad rows, in the order of the source."""
        return (tuple(json.loads(text)) for (text,) in self._db.execute("SELECT fields FROM bad ORDER BY row"))

    def bad_kinds(self) -> tuple[int, list[tuple[str, int]]]:
        """Return how many rows are bad, and how many by kind, the most common first."""
        kinds = self._db.execute("SELECT kind, COUNT(*) FROM bad GROUP BY kind ORDER BY 2 DESC, MIN(row)").fetchall()
        return sum(count for _, count in kinds), kinds

    def __len__(self) -> int:
        return self._db.execute("SELECT COUNT(*) FROM groups").fetchone()[0]

    def __iter__(self) -> Iterator[PromptGroup]:
        """Yield the groups in the order of the source."""
        rows = self._db.execute("SELECT id, image, others, rest FROM groups ORDER BY place")
        return (self._group(*row) for row in rows)

    def _group(self, name: str, image: int, others: str | None, rest: str) -> PromptGroup:
        row = json.loads(rest)
        return PromptGroup(
            id=name,
            images=self._refs(image, others),
            messages=tuple(row["prompt"]),
            responses=tuple(Response(**response) for response in row["responses"]),
            references=tuple(row.get("references", ())),
            origin=row.get("origin", ""),
            facts=row.get("facts", {}),
        )

    def _refs(self, image: int, others: str | None) -> tuple[ImageRef, ...]:
        found = (self._ref(number) for number in _numbers(image, others))
        return tuple(ref for ref in found if ref is not None)

    def _read_ref(self, image: int) -> ImageRef | None:
        (text,) = self._db.execute("SELECT ref FROM images WHERE image = ?", (image,)).fetchone()
        return None if text.startswith("prompt ") else self._unpacked(text)

    def _unpacked(self, text: str) -> ImageRef:
        value = json.loads(text)
        if isinstance(value, str):
            return ImageRef(path=value)
        if "tar" in value:
            return ImageRef(stored=TarMember(**value))
        if "url" in value:
            return ImageRef(stored=WebImage(**value))
        if "base64" in value:
            return ImageRef(data=base64.b64decode(value["base64"]))
        number, row, column, position = value["cell"]
        file, table = self._tables[number]
        return ImageRef(stored=StoredCell(file, row, column, position, table))

    def _packed(self, ref: ImageRef) -> str:
        """Return an image reference as text."""
        if isinstance(ref.stored, StoredCell):
            cell = ref.stored
            number = next(i for i, (_, table) in enumerate(self._tables) if table is cell.table)
            return json.dumps({"cell": [number, cell.row, cell.column, cell.position]})
        if ref.data is not None:
            return json.dumps({"base64": base64.b64encode(ref.data).decode()})
        return json.dumps(ref.to_json())

    # -- images --------------------------------------------------------------------------------------------------------

    def images(self) -> int:
        """Return how many different images there are, by where they are."""
        return self._db.execute("SELECT COUNT(*) FROM images WHERE digest IS NULL").fetchone()[0]

    def batches(self, size: int) -> Iterator[list[tuple[int, ImageRef]]]:
        """Yield the images with their numbers, some at once, in the order in which rows name them."""
        last = 0
        while part := self._db.execute(
            "SELECT image, ref FROM images WHERE image > ? AND digest IS NULL ORDER BY image LIMIT ?", (last, size)
        ).fetchall():
            yield [(number, self._unpacked(text)) for number, text in part]
            last = part[-1][0]

    def note_images(self, found: Sequence[tuple[int, str, str | None]]) -> None:
        """Keep what images are: number, SHA-256 in hex, and the file that they were written to, where they were."""
        self._db.executemany(
            "UPDATE images SET digest = ?, ref = COALESCE(?, ref) WHERE image = ?",
            ((bytes.fromhex(digest), path and json.dumps(path), number) for number, digest, path in found),
        )
        self._ref.cache_clear()

    def note_problem(self, image: int, kind: str, detail: str) -> None:
        """Keep why an image cannot be used."""
        self._db.execute("INSERT INTO problems VALUES (?, ?)", (image, json.dumps([kind, detail])))

    def note_unfit(self, row: int, kind: str, detail: str) -> None:
        """Keep why a row cannot be used, which its text and its images alone do not say."""
        self._db.execute("INSERT OR IGNORE INTO unfit VALUES (?, ?)", (row, json.dumps([kind, detail])))

    def by_row(self) -> Iterator[tuple[int, PromptGroup]]:
        """Yield the groups in the order of the source, each with its row."""
        rows = self._db.execute("SELECT row, id, image, others, rest FROM groups ORDER BY place")
        return ((row, self._group(*fields)) for row, *fields in rows)

    def pictures(self) -> Iterator[tuple[ImageRef, str]]:
        """Yield the images whose content is known, each once, and the SHA-256 of each in hex."""
        found = self._db.execute(
            "SELECT ref, digest FROM images WHERE digest IS NOT NULL GROUP BY ref ORDER BY MIN(image)"
        )
        return ((self._unpacked(ref), digest.hex()) for ref, digest in found if not ref.startswith("prompt "))

    def broken_rows(self) -> Iterator[tuple[int, tuple[str, str]]]:
        """Yield the rows that cannot be used after all, in the order of the source, and why: kind and detail."""
        last = 0
        for row, image, others in self._db.execute("SELECT row, image, others FROM groups ORDER BY place"):
            problem = next((p for n in _numbers(image, others) if (p := self._problem("problems", n))), None)
            problem = problem or self._problem("unfit", row)
            if problem is not None and row != last:
                yield row, problem
                last = row

    def _problem(self, table: str, number: int) -> tuple[str, str] | None:
        found = self._db.execute(f"SELECT problem FROM {table} WHERE rowid = ?", (number,)).fetchone()
        if found is None:
            return None
        kind, detail = json.loads(found[0])
        return kind, detail

    def drop_broken(self) -> None:
        """Leave out the groups of rows that were set aside."""
        self._db.execute("DELETE FROM groups WHERE row IN (SELECT row FROM bad)")

    # -- parts ---------------------------------------------------------------------------------------------------------

    def share_out(self, *, stage1_share: float, held_out: float, seed: int) -> None:
        """Share the groups out by their images, whose digests are known; see `cwdpo.data.splits.share_out`.

        Raises:
            DataError: As there.
        """
        read = self._db.execute("SELECT place, image FROM groups ORDER BY place")
        pairs = np.fromiter((number for row in read for number in row), np.int64).reshape(-1, 2)
        digests = bytearray(32 * (int(pairs[:, 1].max(initial=0)) + 1))
        for number, digest in self._db.execute("SELECT image, digest FROM images WHERE digest IS NOT NULL"):
            digests[32 * number : 32 * number + 32] = digest
        several = self._db.execute("SELECT others FROM groups WHERE others IS NOT NULL")
        links = (json.loads(text) for (text,) in several)
        out = share_out(pairs[:, 1], bytes(digests), links, stage1_share=stage1_share, held_out=held_out, seed=seed)
        self._sort(pairs[:, 0], out)

    def _sort(self, places: Any, out: SharedOut) -> None:
        for start in range(0, len(places), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            pairs = zip(places[part].tolist(), out.ranks[part].tolist(), strict=True)
            self._db.executemany("INSERT INTO ranks VALUES (?, ?)", pairs)
        self._db.execute(
            "INSERT INTO sorted SELECT NULL, place, rank FROM ranks JOIN groups USING (place) ORDER BY rank, id, place"
        )
        self._bounds = out.bounds

    def roles(self, part: str | None) -> Counter[str]:
        """Count the responses of a part, or of all groups, by their roles; `prompts` counts the groups."""
        found: Counter[str] = Counter()
        chosen = "groups" if part is None else "ranks JOIN groups USING (place) WHERE rank >= ? AND rank < ?"
        bounds = () if part is None else self._bounds[part]
        for text, count in self._db.execute(f"SELECT roles, COUNT(*) FROM {chosen} GROUP BY roles", bounds):
            found.update({role: n * count for role, n in json.loads(text).items()})
            found["prompts"] += count
        return found

    def lines(self, part: str | None, root: Path) -> Iterator[str]:
        """Yield the groups of a part, or all in the order of the source, as lines of our JSONL format.

        Args:
            part: One of `PARTS` after `share_out`, or None.
            root: Folder that image paths are given relative to, where the image lies in it.
        """
        columns = "SELECT image, others, rest FROM"
        rows = (
            self._db.execute(f"{columns} groups ORDER BY place")
            if part is None
            else self._db.execute(
                f"{columns} sorted JOIN groups USING (place) WHERE rank >= ? AND rank < ? ORDER BY turn",
                self._bounds[part],
            )
        )
        place = lru_cache(4096)(partial(self._place, root))
        for image, others, rest in rows:
            found = ", ".join(text for number in _numbers(image, others) if (text := place(number)))
            yield rest.replace('"images": []', f'"images": [{found}]', 1)

    def _place(self, root: Path, image: int) -> str:
        ref = self._ref(image)
        return "" if ref is None else json.dumps(ref.to_json(root), ensure_ascii=False)


def _numbers(image: int, others: str | None) -> list[int]:
    return [image] if others is None else json.loads(others)
