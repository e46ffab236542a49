"""Make the shipped base of the embedded world: a tiny Qwen2.5-VL that learns to caption its pictures from nothing.

    python scripts/make_scenes_base.py --out src/cwdpo/scenes/base

Trains on gold captions of the split `base` until half of the greedy captions of `validation` pictures are wholly right,
measures on `test`, and writes model, tokenizer, processor and `base_card.json`. One core, some minutes.

What a caption says of a relation needs three things at once: to find the shape that was named, to read where it is, and
to compare it with the others. Captions alone teach the first and then nothing for thousands of updates. So, as for the
models that this one stands for, the vision tower is trained before the language model sees it: to say of every cell of
the grid what stands there and where the cell is. And half of the first updates' captions are lessons in where one shape
is: `a red left of` (the place, right after the colour that finds the shape) and `a red circle left of`.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)
from transformers.processing_utils import ProcessorMixin

from cwdpo.files import atomic_directory, write_json
from cwdpo.models.processors import image_only
from cwdpo.scenes.drawing import BACKGROUND, PIXELS, render
from cwdpo.scenes.grammar import NOUNS, PHRASES, PROMPT, caption_words, is_correct, sample_caption
from cwdpo.scenes.scene_negatives import negative
from cwdpo.scenes.scene_rows import sample_scenes
from cwdpo.scenes.world import COLOURS, GRID, KINDS, SIZES, Scene

UNKNOWN, PAD, START, END = "[UNK]", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL = [UNKNOWN, PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO]
ROLES = ["system", "user", "assistant"]
PATCH = 8

# The layout of Qwen2.5-VL's own template. White space between tokens is dropped by the tokenizer.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_processor() -> ProcessorMixin:
    """Return the processor: one token a word, 16 image tokens a picture."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *ROLES, *caption_words()])}
    words = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    words.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[START, VISION_START, VISION_END, IMAGE, VIDEO],
        model_max_length=1024,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    area = PIXELS * PIXELS
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=2,
        min_pixels=area,
        max_pixels=area,
        # The background becomes nearly 0: the patch embedding has no bias, and a constant would drown the shapes.
        image_mean=[level / 255 for level in BACKGROUND],
        image_std=[0.5, 0.5, 0.5],
    )
    return image_only(Qwen2_5_VLProcessor)(images, tokenizer, chat_template=CHAT_TEMPLATE)


def make_model(processor: Any, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Return the untrained model; its weights depend on `seed` alone."""
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 1024,
            # Half of the head dimension of 32, divided among time, height and width.
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0},
            "bos_token_id": None,
            "eos_token_id": ids[END],
            "pad_token_id": ids[PAD],
            "tie_word_embeddings": True,
            "initializer_range": 0.06,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            # One window spans the picture, and the last layer attends to all of it in any case.
            "window_size": PIXELS,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 128,
            "initializer_range": 0.06,
        },
        image_token_id=ids[IMAGE],
        video_token_id=ids[VIDEO],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=ids[END], pad_token_id=ids[PAD], max_new_tokens=32
    )
    return model


@dataclass(frozen=True)
class Pictures:
    """Scenes and their pictures, 64 x 64 x 3 bytes each."""

    scenes: list[Scene]
    pixels: np.ndarray

    @classmethod
    def of(cls, split: str, seed: int, count: int) -> Pictures:
        """Render the first `count` scenes of a split and seed."""
        scenes = list(itertools.islice(sample_scenes(split, seed), count))
        return cls(scenes, np.stack([np.asarray(render(scene)) for scene in scenes]))


class Encoder:
    """Turns pictures and captions into what the model takes. The prompt is the same for every picture."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.end = processor.tokenizer.eos_token_id
        self.pad = processor.tokenizer.pad_token_id
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
        text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        blank = np.zeros((PIXELS, PIXELS, 3), dtype=np.uint8)
        self.prompt: list[int] = processor(images=[blank], text=[text])["input_ids"][0]

    def encode(self, pixels: np.ndarray, captions: list[str]) -> dict[str, Tensor]:
        """Return model inputs, right-padded; labels are -100 outside the caption and its end token.

        An empty list of captions gives the prompts alone, ready to generate from.
        """
        images = self.processor.image_processor(list(pixels), do_resize=False, return_tensors="pt")
        answers = self.processor.tokenizer(captions)["input_ids"] if captions else [[] for _ in pixels]
        ends = [self.end] if captions else []
        rows = [[*self.prompt, *answer, *ends] for answer in answers]
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, : len(self.prompt)] = -100
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": (ids == self.processor.image_token_id).long(),
            "labels": labels,
            **images,
        }


def token_logps(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities [batch, tokens, words] of the next token, the labels, and where labels count."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logps = model(**inputs).logits[:, :-1].float().log_softmax(-1)
    labels = batch["labels"][:, 1:]
    return logps, labels.clamp_min(0), labels >= 0


@torch.no_grad()
def share_right(model: Any, encoder: Encoder, pictures: Pictures, chunk: int = 100) -> float:
    """Return the share of greedy captions that are wholly right."""
    model.eval()
    right = 0
    for start in range(0, len(pictures.scenes), chunk):
        batch = encoder.encode(pictures.pixels[start : start + chunk], [])
        del batch["labels"]
        out = model.generate(**batch)[:, len(encoder.prompt) :]
        texts = encoder.processor.tokenizer.batch_decode(out, skip_special_tokens=True)
        right += sum(map(is_correct, texts, pictures.scenes[start : start + chunk]))
    return right / len(pictures.scenes)


@torch.no_grad()
def measure(model: Any, encoder: Encoder, pictures: Pictures, chunk: int = 100) -> dict[str, Any]:
    """Return mean log-probabilities per token (nats, end token included) of each kind of caption, and the ECE.

    ECE: over the tokens of gold captions, 15 equal bins of the highest probability, top-1 accuracy against it.
    """
    model.eval()
    rng = random.Random("measure")
    golds = [sample_caption(scene, rng) for scene in pictures.scenes]
    kinds = {"gold": golds}
    for difficulty in ("hard", "medium", "easy"):
        kinds[difficulty] = [negative(g, s, difficulty, rng) for g, s in zip(golds, pictures.scenes, strict=True)]
    means: dict[str, float] = {}
    confidences, hits = [], []
    for kind, captions in kinds.items():
        total, count = 0.0, 0
        for start in range(0, len(captions), chunk):
            texts = [caption.text for caption in captions[start : start + chunk]]
            logps, labels, counted = token_logps(model, encoder.encode(pictures.pixels[start : start + chunk], texts))
            total += logps.gather(-1, labels[..., None])[..., 0][counted].double().sum().item()
            count += int(counted.sum())
            if kind == "gold":
                best, guess = logps.max(-1)
                confidences.append(best.exp()[counted])
                hits.append((guess == labels)[counted])
        means[kind] = total / count
    confidence, hit = torch.cat(confidences), torch.cat(hits).float()
    bins = (confidence * 15).long().clamp_max(14)
    gaps = [(hit[bins == b] - confidence[bins == b]).sum().abs() for b in range(15)]
    return {"logp_per_token": means, "ece": float(sum(gaps)) / len(hit)}


def lesson(scene: Scene, rng: random.Random) -> str:
    """Return one shape of a scene, its noun said or not, and in which half of the picture it is."""
    shape = rng.choice(scene.shapes)
    side = rng.choice(["left" if shape.column < GRID // 2 else "right", "above" if shape.row < GRID // 2 else "below"])
    words = [shape.size if rng.random() < 0.5 else "", shape.colour]
    words.append(rng.choice(NOUNS[shape.kind]) if rng.random() < 0.5 else "")
    said = " ".join(filter(None, words))
    return f"{'an' if said[0] in 'aeiou' else 'a'} {said} {rng.choice(PHRASES[side])}"


def batches(pictures: Pictures, size: int, rng: random.Random, lessons: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield pixels and freshly worded gold captions, epoch after epoch in a new order, without end.

    In the first `lessons` batches, half of the captions are lessons.
    """
    order, count = list(range(len(pictures.scenes))), 0
    while True:
        rng.shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            chosen, count = order[start : start + size], count + 1
            share = 0.5 if count <= lessons else 0.0
            yield (
                pictures.pixels[chosen],
                [
                    lesson(pictures.scenes[i], rng)
                    if rng.random() < share
                    else sample_caption(pictures.scenes[i], rng).text
                    for i in chosen
                ],
            )


def cell_labels(scene: Scene) -> list[list[int]]:
    """Return for every cell, row by row: colour, kind and size of what stands there (0 is nothing), row and column."""
    labels = [[0, 0, 0, cell // GRID, cell % GRID] for cell in range(GRID * GRID)]
    for s in scene.shapes:
        named = [1 + COLOURS.index(s.colour), 1 + KINDS.index(s.kind), 1 + SIZES.index(s.size)]
        labels[s.row * GRID + s.column][:3] = named
    return labels


def train_tower(args: argparse.Namespace, model: Any, encoder: Encoder, pictures: Pictures) -> None:
    """Train the vision tower and the projector alone: a cell's feature is the sum of the codes of what is true of it.

    The codes are random vectors, one for each value of each of `cell_labels`.
    """
    width = model.config.vision_config.out_hidden_size
    sizes = [1 + len(COLOURS), 1 + len(KINDS), 1 + len(SIZES), GRID, GRID]
    codes = [torch.randn(size, width) * 0.5 for size in sizes]
    labels = torch.tensor([cell_labels(scene) for scene in pictures.scenes])
    weights = list(model.model.visual.parameters())
    optimizer = torch.optim.AdamW(weights, lr=args.tower_lr, betas=(0.9, 0.98), weight_decay=0.01)
    chance = np.random.default_rng(args.seed)
    for step in range(1, args.tower_steps + 1):
        optimizer.param_groups[0]["lr"] = args.tower_lr * min(1.0, step / 100, 2 - 2 * step / (args.tower_steps + 1))
        chosen = chance.integers(len(labels), size=args.batch)
        images = encoder.processor.image_processor(list(pictures.pixels[chosen]), do_resize=False, return_tensors="pt")
        found = model.model.get_image_features(images["pixel_values"], images["image_grid_thw"]).pooler_output
        facts = labels[chosen].flatten(0, 1)
        wanted = torch.stack([code[facts[:, i]] for i, code in enumerate(codes)]).sum(0)
        missed = (torch.cat(list(found)) - wanted).square().mean(-1)
        shapes = facts[:, 0] > 0
        loss = missed[shapes].mean() + missed[~shapes].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"tower: step {step}, variance missed {missed[shapes].mean().item() / 1.25:.4f}", flush=True)


def train(args: argparse.Namespace, model: Any, encoder: Encoder) -> tuple[int, float]:
    """Train until the share of right captions on validation pictures reaches `args.target`.

    Returns:
        Steps taken and that share.
    """
    pictures = Pictures.of("base", args.seed, args.pictures)
    validation = Pictures.of("validation", args.seed, 500)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(pictures.scenes)} pictures", flush=True)
    began = time.process_time()
    train_tower(args, model, encoder, pictures)
    model.model.visual.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    source = batches(pictures, args.batch, random.Random(args.seed), args.lessons)
    share, losses = 0.0, 0.0
    for step in range(1, args.max_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, step / 100)

        if step == args.lessons + 1:
            model.model.visual.requires_grad_(True)

        # single training step
        model.train()
        pixels, captions = next(source)
        logps, labels, counted = token_logps(model, encoder.encode(pixels, captions))
        loss = -logps.gather(-1, labels[..., None])[..., 0][counted].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses += loss.item()

        if step % 100 == 0:
            print(f"step {step} loss {losses / 100:.4f} {time.process_time() - began:.0f} s", flush=True)
            losses = 0.0
        if step % args.every == 0:
            share = share_right(model, encoder, validation)
            print(f"step {step} right {share:.3f} {time.process_time() - began:.0f} s", flush=True)
            if share >= args.target and step > args.lessons:
                return step, share
    return args.max_steps, share


def main() -> None:
    """Train, measure on pictures never seen before, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tower-lr", type=float, default=2e-3)
    parser.add_argument("--tower-steps", type=int, default=500, help="updates of the vision tower alone")
    parser.add_argument("--pictures", type=int, default=20_000, help="pictures in memory, 12 kB each")
    parser.add_argument("--max-steps", type=int, default=8_000)
    parser.add_argument("--every", type=int, default=125, help="steps between looks at the validation pictures")
    parser.add_argument("--target", type=float, default=0.5, help="share of right captions to stop at")
    parser.add_argument("--lessons", type=int, default=500, help="updates in which half of the captions are lessons")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)

    processor = make_processor()
    model = make_model(processor, args.seed)
    encoder = Encoder(processor)
    began = time.process_time()
    steps, validation_share = train(args, model, encoder)
    seconds = time.process_time() - began

    test = Pictures.of("test", args.seed, 2_000)
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": args.seed,
        "steps": steps,
        "batch": args.batch,
        "learning_rate": args.lr,
        "training_pictures": args.pictures,
        "lessons": args.lessons,
        "tower_steps": args.tower_steps,
        "seconds_on_one_core": round(seconds),
        "right_on_validation": validation_share,
        "test": {
            "pictures": len(test.scenes),
            "right": share_right(model, encoder, test),
            **measure(model, encoder, test),
        },
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print(card, flush=True)
    with atomic_directory(args.out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_json(folder / "base_card.json", card)


if __name__ == "__main__":
    main()
