"""What the rows of a run are like: how many, how long, how large their pictures; read from the data or assumed."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cwdpo.data import ImageLimits
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

__all__ = ["Lengths", "Rows", "Said", "measured_rows", "of_lengths", "read_rows"]

_SAMPLE, _DRAWN = 200, 64
"""Rows of the data, or drawn pictures, that are looked at, evenly spread."""
_PROMPTS = 10_000
"""Prompts that are assumed."""
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
        group: The longest prompt as the model reads it.
    """

    counts: Mapping[str, int]
    typical: Lengths
    largest: Lengths
    source: str
    group: EncodedGroup


def read_rows(recipe: Recipe, config: Any, said: Said) -> Rows:
    """Look at the data of a recipe, or assume what they are like.

    Raises:
        UserError: The data are there and cannot be read, or the model reads pictures in a way that is not known.
    """
    path, encoder = recipe.data.path, _encoder(recipe)
    given = {"prompt": said.prompt_tokens, "visual": said.visual_tokens, "response": said.response_tokens}
    changes: dict[str, float] = {name: float(n) for name, n in given.items() if n is not None}
    absent = "behind an address" if "://" in path else "not there"
    is_here = path == "scenes" or ("://" not in path and (Path(path).exists() or any(c in path for c in "*?[{")))
    count, groups, source = _PROMPTS, list[PromptGroup](), "lengths as given"
    if not is_here:
        source = f"{path} is {absent}: lengths and {_PROMPTS:,} prompts are assumed"
    elif len(changes) < len(given):
        count, groups, source = _sample(recipe)
    counts = _counts(recipe, count if said.prompts is None else said.prompts)
    group, pixels = None, recipe.model.max_pixels
    assumed = Lengths(40.0, 1024.0 if pixels is None else min(1024.0, pixels // 28**2), 60.0)
    typical = largest = assumed
    if groups and encoder is not None:
        rows = measured_rows(counts, source, config, [encoder.encode(group) for group in groups])
        typical, largest, source, group = rows.typical, rows.largest, rows.source, rows.group
    elif groups:
        typical, largest = _summary([_guessed(recipe, config, group) for group in groups])
        source = f"{source}, at {_CHARACTERS} characters a token"
    typical, largest = replace(typical, **changes), replace(largest, **changes)
    if changes:
        source = f"{source}; given: {', '.join(sorted(changes))}"
    if group is None or changes.keys() & {"prompt", "visual"}:
        group = _made_up(config, largest) if encoder is None else _drawn(encoder, config, largest)
    return Rows(counts, typical, largest, source, group)


def measured_rows(counts: Mapping[str, int], source: str, config: Any, encoded: Sequence[EncodedGroup]) -> Rows:
    """Return what rows are like that are encoded already."""
    lengths = [_lengths(group, config) for group in encoded]
    longest = max(range(len(encoded)), key=lambda i: lengths[i][0].tokens(0))
    return Rows(counts, *_summary(lengths), f"{source}, with the model's processor", encoded[longest])


def _summary(lengths: Sequence[tuple[Lengths, float]]) -> tuple[Lengths, Lengths]:
    """Return the mean lengths, and those of the longest prompt with the longest response."""
    typical = Lengths(*map(statistics.fmean, zip(*(astuple(one) for one, _ in lengths), strict=True)))
    longest = max((one for one, _ in lengths), key=lambda one: one.prompt + one.visual)
    return typical, replace(longest, response=float(max(most for _, most in lengths)))


def _counts(recipe: Recipe, prompts: int) -> dict[str, int]:
    """Split prompts as the run will."""
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


def _sample(recipe: Recipe) -> tuple[int, list[PromptGroup], str]:
    """Return how many rows there are, some of them, and where they are from."""
    d = recipe.data
    with tempfile.TemporaryDirectory() as folder:
        source = source_of(recipe, d.path, check_images=False)
        if d.path == "scenes":
            write_rows(Path(folder), _DRAWN, d.split_seed, "train")
            source = source_of(recipe, f"{folder}/train.jsonl", format="cwdpo", check_images=False)
        with read_source(source) as rows:
            step = max(1, len(rows) // _SAMPLE)
            groups = list(islice(islice(rows, 0, None, step), _SAMPLE))
            if d.path == "scenes":
                # Pictures are read before their folder goes.
                return d.size, [replace(g, images=tuple(map(_loaded, g.images))) for g in groups], "64 drawn pictures"
            return len(rows), groups, f"{len(groups)} of {len(rows)} rows of {d.path}"


def _loaded(image: ImageRef) -> ImageRef:
    return image if image.path is None else ImageRef(data=Path(image.path).read_bytes())


def _lengths(group: EncodedGroup, config: Any) -> tuple[Lengths, float]:
    """Return a prompt's lengths, with the mean of its responses, and the longest of them."""
    token = getattr(config, "image_token_id", None)
    visual = group.prefix_ids.count(token) if token is not None else 0
    answers = [len(r.ids) for r in group.responses] or [1]
    return Lengths(len(group.prefix_ids) - visual, visual, statistics.fmean(answers)), max(answers)


def _guessed(recipe: Recipe, config: Any, group: PromptGroup) -> tuple[Lengths, float]:
    """Return the same from characters, and from pictures' headers by the rule of Qwen-VL's processor."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    m, vision = recipe.model, getattr(config, "vision_config", None)
    side = getattr(vision, "patch_size", 14) * getattr(vision, "spatial_merge_size", 2)
    low, high = m.min_pixels or 4 * side**2, m.max_pixels or 16_384 * side**2
    visual, prompt = 0, 16
    for width, height in map(image_size, group.images):
        tall, wide = smart_resize(height, width, factor=side, min_pixels=low, max_pixels=max(low, high))
        visual += tall * wide // side**2
    for content in (message["content"] for message in group.messages):
        parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        prompt += sum(map(len, parts)) // _CHARACTERS
    answers = [len(r.text) // _CHARACTERS + 2 for r in group.responses] or [1]
    return Lengths(prompt, visual, statistics.fmean(answers)), max(answers)


def _drawn(encoder: PromptEncoder, config: Any, lengths: Lengths) -> EncodedGroup:
    """Encode a prompt that is made up: a grey picture of about so many visual tokens, words of so many."""
    vision = config.vision_config
    merge = getattr(vision, "spatial_merge_size", None)
    side = round(lengths.visual**0.5) * vision.patch_size * merge if merge else getattr(vision, "image_size", 336)
    picture = Image.new("RGB", (max(side, 28), max(side, 28)), (128, 128, 128))
    group = PromptGroup("made up", (ImageRef(picture=picture),), (user_message("x"),), (Response("x", "chosen"),))
    encoded = encoder.encode(group)
    more = max(0, round(lengths.prompt - _lengths(encoded, config)[0].prompt))
    types = {name: (*values, *(0,) * more) for name, values in encoded.token_types.items()}
    return replace(encoded, prefix_ids=encoded.prefix_ids + encoded.prefix_ids[-1:] * more, token_types=types)


def _made_up(config: Any, lengths: Lengths) -> EncodedGroup:
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
    merge, visual, text = vision.spatial_merge_size, max(1, round(lengths.visual)), max(1, round(lengths.prompt) - 1)
    high = max(n for n in range(1, int(visual**0.5) + 1) if visual % n == 0)
    numbers = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2
    return EncodedGroup(
        id="made up",
        origin="made up",
        prefix_ids=(config.vision_start_token_id, *(config.image_token_id,) * visual, *(1,) * text),
        token_types={"mm_token_type_ids": (0, *(1,) * visual, *(0,) * text)},
        vision={
            "pixel_values": torch.zeros(visual * merge**2, numbers),
            "image_grid_thw": torch.tensor([[1, high * merge, visual // high * merge]]),
        },
        responses=(),
    )


def of_lengths(group: EncodedGroup, response: int, count: int, prompts: int) -> tuple[EncodedGroup, ...]:
    """Return so many copies of a prompt with so many responses of a length each."""
    answer = EncodedResponse((group.prefix_ids[-1],) * max(1, response), "chosen", "", None, "")
    return (replace(group, responses=(answer,) * count),) * prompts
