"""Rows in the columns in which public data sets are published; every text and picture is our own."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = ("red", "green", "blue")
QUESTION = "Which colour is it?"


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def cell(colour: str) -> dict[str, Any]:
    return {"bytes": png(colour), "path": f"{colour}.png"}


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def other(colour: str) -> str:
    return COLOURS[(COLOURS.index(colour) + 1) % 3]


def rated(value: int) -> dict[str, Any]:
    aspects = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    return {aspect: {"Rating": str(value), "Rationale": "…"} for aspect in aspects}


def _origin(i: int) -> dict[str, Any]:
    return {"origin_dataset": "boxes", "origin_split": '{"model": "m", "type": "t"}', "idx": i, "image_path": "x.png"}


def published() -> dict[str, tuple[str, list[Any] | dict[str, Any]]]:
    """Return for each data set the name of its file and its rows (or its one object)."""
    rows = list(enumerate(COLOURS))

    def answers(c: str) -> dict[str, str]:
        return {"chosen": f"It is {c}.", "rejected": f"It is {other(c)}."}

    return {
        "rlaif_v": (
            "RLAIF-V-Dataset_000.parquet",
            [{"ds_name": "B", "image": cell(c), "question": QUESTION, **answers(c), **_origin(i)} for i, c in rows],
        ),
        "spa_vl": (
            "data/train-00000-of-00001.parquet",
            [{"image": cell(c), "question": QUESTION, **answers(c), "image_name": f"{i}.png"} for i, c in rows],
        ),
        "mmpr": (
            "colours.jsonl",
            [
                {"id": i, "image": f"{c}.png", "question": f"<image>\n{QUESTION}", **answers(c)}
                if i
                else {"id": i, "image": [f"{c}.png", "blue.png"], "question": "<image>\n<image>\nWhich?", **answers(c)}
                for i, c in rows
            ],
        ),
        "rlhf_v": (
            "RLHF-V-Dataset.parquet",
            [
                {
                    "ds_name": "RLHF-V",
                    "image": cell(c),
                    "text": f'{{"question": "{QUESTION}", "chosen": "It is {c}.", "rejected": "It is {other(c)}."}}',
                    **_origin(i),
                }
                for i, c in rows
            ],
        ),
        "vlfeedback": (
            "vlfeedback_80k.jsonl",
            [
                {
                    "id": f"v-{i}",
                    "prompt": QUESTION,
                    "img_path": f"{c}.png",
                    "models": ["a", "b", "c", "d"],
                    "completions": {
                        "annotations": [rated(2), rated(5), rated(5), rated(3)],
                        "response": ["A colour.", f"It is {c}.", f"{c}!", f"It is {other(c)}."],
                        "model": ["a", "b", "c", "d"],
                    },
                }
                for i, c in rows
            ],
        ),
        "bpo_instruct": (
            "BPO_Instruct.json",
            [
                {
                    "prompt": f"{QUESTION}\n<image>",
                    "image": f"{c}.png",
                    "completions": [
                        {"score": 1, "response": f"It is {c}.", "type": "gt"},
                        {"score": 0, "response": f"It is {other(c)}.", "type": "weakened"},
                        {"score": 0, "response": "It is a cat.", "type": "injected"},
                    ],
                }
                for _, c in rows
            ],
        ),
        "povid": (
            "POVID_preference_data_for_VLLMs.json",
            [
                {
                    "id": f"p-{i}",
                    "image": f"{c}.png",
                    "conversations": turns(f"<image>\n{QUESTION}", f"It is {c}."),
                    "rejected_conversations": turns(f"<image>\n{QUESTION}", f"It is {other(c)}."),
                }
                for i, c in rows
            ],
        ),
        "ha_dpo": (
            "desc_data.json",
            {
                str(i): {"chosen": [f"All is {c}.", f"{c} all over."], "rejected": [f"A {other(c)} cat.", "A dog."]}
                for i, c in rows
            },
        ),
        "ha_dpo (pope)": (
            "pope_data.json",
            [
                {
                    "image_id": i,
                    "question": f"Is it {c}?",
                    "answer": "yes",
                    "chosen": f"Yes, it is {c}.",
                    "reject": "No.",
                    "correct": False,
                }
                for i, c in rows
            ],
        ),
        "llava_rlhf": (
            "llava_7b_v1_preference.json",
            [
                {
                    "id": f"l-{i}",
                    "image": f"{c}.png",
                    "conversations": turns(f"<image>\n{QUESTION}"),
                    "output_1": {"from": "llava", "value": f"It is {c if i % 2 else other(c)}."},
                    "output_2": {"from": "llava", "value": f"It is {other(c) if i % 2 else c}."},
                    "preference": 1 if i % 2 else 2,
                    "hallucination": False,
                }
                for i, c in rows
            ],
        ),
        "mm_rlhf": (
            "dpo_pairs.jsonl",
            [{"prompt": QUESTION, "image": f"{c}.png", **answers(c), "model": "a", "rank": 1} for _, c in rows],
        ),
        "tr_vlm_dpo": (
            "data/train-00000-of-00001.parquet",
            [{"prompt": "Hangi renk?", "image": cell(c), **answers(c)} for _, c in rows],
        ),
        "symmpo": (
            "SymMPO.parquet",
            [
                {
                    "image_1": cell(c),
                    "image_2": cell(other(c)),
                    "question": QUESTION,
                    "resp_1_w": f"It is {c}.",
                    "resp_1_l": f"It is {other(c)}.",
                    "resp_2_w": f"It is {other(c)}.",
                    "resp_2_l": f"It is {c}.",
                    "origin_dataset": "boxes",
                    "origin_split": "{}",
                    "idx": i,
                    "image_path_1": "x.png",
                    "image_path_2": "y.png",
                }
                for i, c in rows
            ],
        ),
        "align_anything": (
            "text-image-to-text/train-00000-of-00001.parquet",
            [
                {
                    "question": QUESTION,
                    "image": cell(c),
                    "response_1": f"It is {c if i % 2 else other(c)}.",
                    "response_2": f"It is {other(c) if i % 2 else c}.",
                    "overall_response": 1 if i % 2 else 2,
                }
                for i, c in rows
            ],
        ),
        "openai": (
            "preferences.jsonl",
            [
                {
                    "input": {
                        "messages": [
                            {
                                "role": "user",
                                "content": [
                                    {"type": "image_url", "image_url": {"url": f"{c}.png"}},
                                    {"type": "text", "text": QUESTION},
                                ],
                            }
                        ],
                        "tools": [],
                        "parallel_tool_calls": True,
                    },
                    "preferred_output": [{"role": "assistant", "content": f"It is {c}."}],
                    "non_preferred_output": [{"role": "assistant", "content": f"It is {other(c)}."}],
                }
                for _, c in rows
            ],
        ),
        "nlvr": (
            "train.json",
            [
                {
                    "sentence": f"All is {c}.",
                    "identifier": f"{i}-0",
                    "directory": "3",
                    "label": ("true", "false")[i % 2],
                }
                for i, c in rows
            ],
        ),
        "trl": (
            "data/train-00000-of-00001.parquet",
            [
                {
                    "images": [cell(c)],
                    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
                    "chosen": [{"role": "assistant", "content": [{"type": "text", "text": f"It is {c}."}]}],
                    "rejected": [{"role": "assistant", "content": [{"type": "text", "text": f"It is {other(c)}."}]}],
                }
                for _, c in rows
            ],
        ),
        "llamafactory": (
            "rlhf_v.json",
            [
                {
                    "conversations": turns(f"<image>{QUESTION}"),
                    "chosen": turns("", f"It is {c}.")[1],
                    "rejected": turns("", f"It is {other(c)}.")[1],
                    "images": [f"{c}.png"],
                }
                for _, c in rows
            ],
        ),
    }


def write(folder: Path, file: str, rows: Any) -> Path:
    """Write a data set and its pictures into an empty folder, and return the path to read."""
    import json

    import datasets

    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    for i, colour in enumerate(COLOURS):
        for name in (f"{colour}.png", f"VG_100K/{i}.jpg", f"images/3/train-{i}-0-0.png"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(png(colour))
    if path.suffix == ".parquet":
        datasets.disable_progress_bars()
        datasets.Dataset.from_list(rows).to_parquet(path)
        for colour in COLOURS:
            (folder / f"{colour}.png").unlink()
    elif path.suffix == ".jsonl" or file == "train.json":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path
