"""What the rows of a run are like: how many, how long, how large their pictures; read from the data or assumed."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cwdpo.data import DataSource, ImageLimits
from cwdpo.data.images import image_size
from cwdpo.data.read_source import read_source
from cwdpo.data.schema import ImageRef, PromptGroup, Response, user_message
from cwdpo.errors import ModelError
from cwdpo.files import read_json
from cwdpo.models.processors import load_processor
from cwdpo.recipe import Recipe
from cwdpo.run.prepare_data import source_of
from cwdpo.scenes import base_path
from cwdpo.scenes.scene_rows import write_rows
from cwdpo.scoring.batch import EncodedGroup, EncodedResponse
from cwdpo.scoring.collator import PromptEncoder

__all__ = ["Lengths", "Rows", "Said", "made_up_group", "of_lengths", "read_rows"]

_SAMPLE = 200
"""Rows of the data that are looked at, evenly spread."""
_CHARACTERS = 4
"""Characters of a token, where no tokenizer is at hand."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of each of its responses.

    Attributes:
        prompt: Of the text of the prompt, the template's included.
        visual: Of its pictures.
        response: Of one response, with its end.
    """

    prompt: float
    visual: float
    response: float

    def tokens(self, responses: int) -> float:
        """Return the tokens that are encoded where prompt and pictures are encoded once."""
        return self.prompt + self.visual + responses * (self.response - 1)


@dataclass(frozen=True)
class Said:
    """What the user says of the data, in place of what would be read or assumed."""

    prompts: int | None = None
    prompt_tokens: int | None = None
    visual_tokens: int | None = None
    response_tokens: int | None = None


@dataclass(frozen=True)
class Rows:
    """What the data are like.

    Attributes:
        counts: Prompts of `stage1`, `stage2` and `held_out`.
        typical: Mean lengths, for time.
        largest: The longest prompt and the longest response, for memory.
        source: Where this was read, or that it is assumed.
        group: The longest prompt as it is encoded, where the processor is at hand.
    """

    counts: dict[str, int]
    typical: Lengths
    largest: Lengths
    source: str
    group: EncodedGroup | None = None

    def longest(self, config: Any) -> EncodedGroup:
        """Return the longest prompt as the model reads it."""
        return self.group if self.group is not None else made_up_group(config, self.largest)


def read_rows(recipe: Recipe, config: Any, said: Said) -> Rows:
    """Look at the data of a recipe, or assume what they are like.

    Raises:
        UserError: The data are there and cannot be read.
    """
    d, said_all = recipe.data, None not in (said.prompt_tokens, said.visual_tokens, said.response_tokens)
    encoder = _encoder(recipe)
    if (why := _out_of_reach(d.path)) is not None:
        rows = _assumed(recipe, f"{d.path} is {why}: lengths and {_ROWS:,} prompts are assumed")
    elif said_all:
        rows = _assumed(recipe, "lengths as given")
    else:
        rows = _looked_at(recipe, config, encoder)
    if said.prompts is not None:
        rows = replace(rows, counts=_counts(recipe, said.prompts))
    given = {
        "prompt": said.prompt_tokens,
        "visual": said.visual_tokens,
        "response": said.response_tokens,
    }
    changes: dict[str, float] = {name: float(n) for name, n in given.items() if n is not None}
    if changes:
        kept = rows.group if not {"prompt", "visual"} & changes.keys() else None
        lengths = replace(rows.typical, **changes), replace(rows.largest, **changes)
        rows = replace(rows, typical=lengths[0], largest=lengths[1], group=kept)
        rows = replace(rows, source=f"{rows.source}; given: {', '.join(sorted(changes))}")
    if rows.group is None and encoder is not None:
        rows = replace(rows, group=_drawn(encoder, config, rows.largest))
    return rows


_ROWS = 10_000
"""Prompts that are assumed."""


def _out_of_reach(path: str) -> str | None:
    """Return why the data cannot be looked at now, or None."""
    if "://" in path:
        return "behind an address"
    shards = any(mark in path for mark in "*?[{")
    return None if path == "scenes" or shards or Path(path).exists() else "not there"


def _assumed(recipe: Recipe, source: str) -> Rows:
    pixels = recipe.model.max_pixels
    visual = min(1024, pixels // 28**2) if pixels is not None else 1024
    lengths = Lengths(40.0, float(visual), 60.0)
    return Rows(_counts(recipe, _ROWS), lengths, lengths, source)


def _counts(recipe: Recipe, prompts: int) -> dict[str, int]:
    """Share prompts out as the run will."""
    d = recipe.data
    held_out = int(d.held_out) if d.held_out >= 1 else max(1, round(d.held_out * prompts))
    trained = prompts if d.held_out_path is not None or d.path == "scenes" else max(2, prompts - held_out)
    first = round(d.stage1_share * trained)
    return {"stage1": first, "stage2": trained - first, "held_out": held_out}


def _encoder(recipe: Recipe) -> PromptEncoder | None:
    """Return the prompt encoder where the processor is on this machine."""
    m = recipe.model
    path = str(base_path()) if m.path == "scenes" else m.path
    folder = Path(path)
    if not folder.is_dir():
        from transformers.utils.hub import cached_file

        try:
            found = cached_file(path, "config.json", local_files_only=True)
        except (OSError, ValueError):
            return None
        folder = Path(str(found)).parent
    settings = folder / "adapter_config.json"
    if settings.is_file():
        base = read_json(settings).get("base_model_name_or_path", "")
        return _encoder(recipe.model_copy(update={"model": m.model_copy(update={"path": str(base)})}))
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        return None
    processor = load_processor(
        folder, min_pixels=m.min_pixels, max_pixels=m.max_pixels, trust_remote_code=m.trust_remote_code
    )
    return PromptEncoder(processor, limits=ImageLimits(max_pixels=recipe.data.image_pixel_limit))


def _looked_at(recipe: Recipe, config: Any, encoder: PromptEncoder | None) -> Rows:
    """Measure a sample of the rows."""
    d = recipe.data
    with tempfile.TemporaryDirectory() as folder:
        if d.path == "scenes":
            write_rows(Path(folder), 64, d.split_seed, "train")
            groups, _ = _sample(source_of(recipe, f"{folder}/train.jsonl", format="cwdpo", check_images=False))
            return _measured(recipe, config, encoder, groups, d.size, "64 drawn pictures")
        groups, count = _sample(source_of(recipe, d.path, check_images=False))
    return _measured(recipe, config, encoder, groups, count, f"{len(groups)} of {count} rows of {d.path}")


def _sample(source: DataSource) -> tuple[list[PromptGroup], int]:
    """Return some rows, evenly spread, and how many there are."""
    with read_source(source) as rows:
        count = len(rows)
        step = max(1, count // _SAMPLE)
        return list(islice(islice(rows, 0, None, step), _SAMPLE)), count


def _measured(
    recipe: Recipe, config: Any, encoder: PromptEncoder | None, groups: Sequence[PromptGroup], count: int, source: str
) -> Rows:
    encoded: list[EncodedGroup] = []
    lengths: list[tuple[Lengths, int]] = []
    for group in groups:
        if encoder is not None:
            encoded.append(encoder.encode(group))
            lengths.append(_lengths_of(encoded[-1], config))
        else:
            lengths.append(_guessed(recipe, config, group))
    longest = max(range(len(lengths)), key=lambda i: lengths[i][0].prompt + lengths[i][0].visual)
    answer = float(max(most for _, most in lengths))
    typical = Lengths(*(statistics.fmean(getattr(n, name) for n, _ in lengths) for name in _NAMES))
    how = "with the model's processor" if encoder is not None else f"at {_CHARACTERS} characters a token"
    return Rows(
        counts=_counts(recipe, count),
        typical=typical,
        largest=replace(lengths[longest][0], response=answer),
        source=f"{source}, {how}",
        group=encoded[longest] if encoded else None,
    )


_NAMES = ("prompt", "visual", "response")


def _lengths_of(group: EncodedGroup, config: Any) -> tuple[Lengths, int]:
    """Return a prompt's lengths, with the mean of its responses, and the longest of them."""
    token = getattr(config, "image_token_id", None)
    visual = group.prefix_ids.count(token) if token is not None else 0
    answers = [len(r.ids) for r in group.responses] or [1]
    return Lengths(len(group.prefix_ids) - visual, visual, statistics.fmean(answers)), max(answers)


def _guessed(recipe: Recipe, config: Any, group: PromptGroup) -> tuple[Lengths, int]:
    """Return the same from characters and from the sizes in the pictures' headers."""
    sizes = [image_size(image) for image in group.images]
    visual = sum(_visual_tokens(recipe, config, width, height) for width, height in sizes)
    texts = [part if isinstance(part, str) else part.get("text", "") for m in group.messages for part in _parts(m)]
    answers = [len(r.text) // _CHARACTERS + 2 for r in group.responses] or [1]
    prompt = sum(map(len, texts)) // _CHARACTERS + 16
    return Lengths(prompt, visual, statistics.fmean(answers)), max(answers)


def _parts(message: Any) -> list[Any]:
    content = message["content"]
    return [content] if isinstance(content, str) else list(content)


def _visual_tokens(recipe: Recipe, config: Any, width: int, height: int) -> int:
    """Return the visual tokens of a picture, by the rule of Qwen-VL's processor."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    vision, m = config.vision_config, recipe.model
    side = getattr(vision, "patch_size", 14) * getattr(vision, "spatial_merge_size", 2)
    low, high = m.min_pixels or 4 * side**2, m.max_pixels or 16_384 * side**2
    tall, wide = smart_resize(height, width, factor=side, min_pixels=low, max_pixels=max(low, high))
    return tall * wide // side**2


def _drawn(encoder: PromptEncoder, config: Any, lengths: Lengths) -> EncodedGroup:
    """Encode a prompt that is made up: a grey picture of about so many visual tokens, words of so many."""
    vision = config.vision_config
    merge = getattr(vision, "spatial_merge_size", None)
    side = round(lengths.visual**0.5) * vision.patch_size * merge if merge else getattr(vision, "image_size", 336)
    picture = Image.new("RGB", (max(side, 28), max(side, 28)), (128, 128, 128))
    group = PromptGroup("made up", (ImageRef(picture=picture),), (user_message("x"),), (Response("x", "chosen"),))
    encoded = encoder.encode(group)
    found, _ = _lengths_of(encoded, config)
    more = max(0, round(lengths.prompt - found.prompt))
    filler = encoded.prefix_ids[-1]
    types = {name: (*values, *(0,) * more) for name, values in encoded.token_types.items()}
    return replace(encoded, prefix_ids=(*encoded.prefix_ids, *(filler,) * more), token_types=types)


def of_lengths(group: EncodedGroup, response: int, count: int, prompts: int) -> tuple[EncodedGroup, ...]:
    """Return so many copies of a prompt with so many responses of a length each."""
    filler = group.prefix_ids[-1]
    answer = EncodedResponse((filler,) * max(1, response), "chosen", "", None, "")
    return (replace(group, responses=(answer,) * count),) * prompts


def made_up_group(config: Any, lengths: Lengths) -> EncodedGroup:
    """Return a prompt with one picture for a model whose processor is not at hand.

    Raises:
        ModelError: How its pictures become tokens is known from its processor alone.
    """
    vision: Any = getattr(config, "vision_config", None)
    needed = ("spatial_merge_size", "patch_size", "temporal_patch_size")
    places = ("vision_start_token_id", "image_token_id")
    if not (all(hasattr(vision, name) for name in needed) and all(hasattr(config, name) for name in places)):
        raise ModelError(
            f"model type {config.model_type!r} cannot be planned from config.json alone; put its processor's files "
            "(preprocessor_config.json or processor_config.json, tokenizer files) beside it"
        )
    merge, patch, start = vision.spatial_merge_size, vision.patch_size, config.vision_start_token_id
    visual = max(1, round(lengths.visual))
    high = max(n for n in range(1, int(visual**0.5) + 1) if visual % n == 0)
    wide = visual // high
    channels = getattr(vision, "in_channels", 3)
    pixels = torch.zeros(visual * merge**2, channels * vision.temporal_patch_size * patch**2)
    grid = torch.tensor([[1, high * merge, wide * merge]])
    text = max(1, round(lengths.prompt) - 1)
    prefix = (start, *(config.image_token_id,) * visual, *(1,) * text)
    types = (0, *(1,) * visual, *(0,) * text)
    return EncodedGroup(
        id="made up",
        origin="made up",
        prefix_ids=prefix,
        token_types={"mm_token_type_ids": types},
        vision={"pixel_values": pixels, "image_grid_thw": grid},
        responses=(),
    )
