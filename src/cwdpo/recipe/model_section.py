"""The model a run starts from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cwdpo.section import Section

__all__ = ["LoraSection", "ModelSection"]


class LoraSection(Section):
    """Low-rank adapters (PEFT)."""

    r: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: float = Field(default=32, gt=0)
    """Scale of the update; the effective factor is alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input in Stage 1. Stage 2, which compares with a reference, trains without dropout."""
    dora: bool = False
    """DoRA: the size of every output's weights is trained by itself, beside the direction that the adapter turns. Takes
    more time and memory (`cwdpo plan` says how much)."""
    target_modules: str | list[str] = "all-linear"
    """Names of the linear layers that get an adapter, a regular expression, or `all-linear`. Frozen towers get none."""


class ModelSection(Section):
    """The vision-language model to start from."""

    path: str = "scenes"
    """A directory in Hugging Face layout, a hub id, or `scenes` for the model that ships with cwdpo."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights while training. bfloat16 halves the memory; log-probabilities are float32 either way."""
    quantization: Literal["nf4"] | None = None
    """QLoRA, with `lora`: `nf4` holds the language model's linear layers in 4 bits (bitsandbytes, double quantisation),
    about 0.52 bytes a weight, and computes in `dtype`. Embeddings, head, vision tower and projector stay in `dtype`.
    Needs `pip install "cwdpo[qlora]"`; not with FSDP."""
    attention: str = "sdpa"
    """transformers' attention implementation: sdpa, eager, flash_attention_2, …; or `shared_prefix`: sdpa, but what
    responses share attends causally without a mask, which GPUs have their fastest kernel for; or `flex_attention`: the
    language model attends by blocks, and those that nobody sees are left out (trains on GPUs only; generation and the
    separate scorer stay with sdpa)."""
    scorer: Literal["auto", "shared", "separate"] = "auto"
    """`auto` encodes image and prompt once for all responses where that is known to work and was checked on the first
    batch, and each response as a sequence of its own elsewhere; `shared` and `separate` insist."""
    padding_free: bool = False
    """Lay all prompts of a micro-batch in one row, one behind the other, instead of padding each to the longest: the
    same scores, and no work for padding where pictures or texts differ in size. Needs the shared scorer. Under `sdpa`
    and `eager` one dense mask spans the row: attention grows with the square of all tokens of the micro-batch;
    `flex_attention` leaves out what other prompts hold."""
    vision_cache_gib: float = Field(default=1.0, ge=0)
    """Memory, in GiB for each process, in which image features of a frozen vision tower stay from step to step (about
    7 MB an image of 1,000 tokens for a 7B model in bfloat16). Not used while the tower is trained; 0 keeps none."""
    vision_cache_folder: str | None = None
    """A folder, best on a fast local disk, in which the features are kept too: for later epochs and runs."""
    vision_cache_folder_gib: float = Field(default=50.0, ge=0)
    """Size that the folder may grow to, in GiB. What does not fit is computed again."""
    freeze: list[Literal["vision", "projector", "language"]] = Field(default=[])
    """Parts that are not trained. With `lora`, parts that get no adapter."""
    train_fully: list[Literal["vision", "projector", "language"]] = Field(default=[])
    """With `lora`: parts, but the language model, that are trained in full beside the adapters (PEFT's
    modules_to_save)."""
    lora: LoraSection | None = None
    """Adapters instead of full finetuning; null trains the weights themselves."""
    min_pixels: int | None = Field(default=None, ge=1)
    """Smallest image area after resizing, for processors that resize freely (Qwen-VL)."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Largest image area after resizing: the knob for the number of visual tokens (Qwen-VL)."""
    max_length: int | None = Field(default=None, ge=1)
    """Longest sequence allowed, in tokens. Nothing is cut: a longer row is an error that names it."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you trust its author."""

    @model_validator(mode="after")
    def _packed_is_shared(self) -> ModelSection:
        if self.padding_free and self.scorer == "separate":
            raise ValueError("padding_free goes with the shared scorer; set scorer: auto or shared, or leave one out")
        return self
