"""What a run is: one YAML file, validated and documented field by field."""

from __future__ import annotations

import re
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "DataSection",
    "EarlyStopSection",
    "EvaluationSection",
    "FilterSection",
    "InfluenceSection",
    "LoraSection",
    "ModelSection",
    "NegativesSection",
    "ProbeSection",
    "Recipe",
    "SourceMix",
    "Stage1Section",
    "Stage2Section",
    "StageSection",
]


class Section(BaseModel):
    """A part of a recipe: frozen, unknown keys refused, every field described."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class LoraSection(Section):
    """Low-rank adapters (PEFT)."""

    r: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: float = Field(default=32, gt=0)
    """Scale of the update; the effective factor is alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input. Above 0 it is drawn anew in every forward pass."""
    target_modules: str | list[str] = "all-linear"
    """Names of the linear layers that get an adapter, a regular expression, or `all-linear`. Frozen towers get none."""


class ModelSection(Section):
    """The vision-language model to start from."""

    path: str = "scenes"
    """A directory in Hugging Face layout, a hub id, or `scenes` for the model that ships with cwdpo."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights while training. bfloat16 halves the memory; log-probabilities are float32 either way."""
    attention: str = "sdpa"
    """transformers' attention implementation: sdpa, eager, flash_attention_2, …"""
    scorer: Literal["auto", "shared", "separate"] = "auto"
    """`auto` encodes image and prompt once for all responses where that is known to work and was checked on the first
    batch, and each response as a sequence of its own elsewhere; `shared` and `separate` insist."""
    vision_cache_gib: float = Field(default=1.0, ge=0)
    """Memory, in GiB for each process, in which image features of a frozen vision tower stay from step to step (about
    7 MB an image of 1,000 tokens for a 7B model in bfloat16). Not used while the tower is trained; 0 keeps none."""
    vision_cache_folder: str | None = None
    """A folder, best on a fast local disk, in which the features are kept too: for later epochs and runs."""
    vision_cache_folder_gib: float = Field(default=50.0, ge=0)
    """Size that the folder may grow to, in GiB. What does not fit is computed again."""
    freeze: list[Literal["vision", "projector", "language"]] = []
    """Parts that are not trained. With `lora`, parts that get no adapter."""
    train_fully: list[Literal["vision", "projector", "language"]] = []
    """With `lora`: parts that are trained in full beside the adapters (PEFT's modules_to_save)."""
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


class DataSection(Section):
    """Where the prompts, images and responses are, and how they are shared out."""

    path: str = "scenes"
    """A file or folder in one of the known formats, or `scenes` for pictures drawn on the spot."""
    format: Literal["auto", "scenes", "cwdpo", "trl", "llamafactory", "swift", "karpathy", "captions"] = "auto"
    """How to read it. `auto` looks at the file."""
    image_root: str | None = None
    """Folder that relative image paths start from; default: the data file's folder."""
    prompt: str = "Describe the image in one sentence."
    """The question for formats that hold captions only (karpathy, captions)."""
    split: str | None = None
    """Which split of the file to read where it has several (karpathy: train includes restval)."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most this many rows."""
    held_out_path: str | None = None
    """A file of its own for the rows set aside for probes and evaluation; `held_out` is then not taken from `path`."""
    captions: Literal["first", "random", "each"] = "first"
    """Which caption of a picture is the chosen response, for formats that hold captions only."""
    size: int = Field(default=4000, ge=8)
    """For `scenes`: how many training pictures to draw."""
    held_out: int | float = Field(default=0.1, gt=0)
    """Rows set aside for probes and evaluation: a count (≥ 1) or a share (< 1). By image, like the stages."""
    stage1_share: float = Field(default=0.75, gt=0, lt=1)
    """Share of the remaining images that Stage 1 sees; Stage 2 gets the rest. By image, disjoint (paper, §4.1)."""
    split_seed: int = 0
    """Seed of that division."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What to do with a row that cannot be used: stop and say which, or set it aside in rejected_rows.jsonl."""
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    """With `skip`: stop all the same when more than this share of the rows is bad."""
    check_images: bool = True
    """Decode every image once before training, so that a truncated file is found now and not in the third hour."""
    image_pixel_limit: int = Field(default=64_000_000, ge=1)
    """Images with more pixels than this are refused before they are decoded (decompression bombs)."""
    workers: int = Field(default=0, ge=0)
    """Processes that decode and process images beside training; 0 does it in the training process."""
    group_by_length: bool = False
    """Put prompts of about equal length (image, text and responses) into the same update: less padding, and an order
    that is less random."""


class FilterSection(Section):
    """Which negatives are dropped. Texts equal to a gold response always are, but for those that came with the data."""

    logp: float | None = None
    """Drop negatives whose ℓ̄ (nats per token, under the model that the stage starts from) is below this: the paper's
    Negative Filtering. Its threshold is not given; stage2.floor - 2 is ours. null drops none."""
    similarity: float | None = Field(default=None, gt=0, le=1)
    """Drop negatives that may be right: whose similarity to the gold responses is this or more. null drops none."""
    measure: Literal["support", "rouge_l", "exact"] = "support"
    """`support`: share of what a text speaks of (objects, whose colour, actions, …) that some gold response of the
    image speaks of too. `rouge_l`: largest ROUGE-L with a gold response. `exact`: 1 where it is true of the picture,
    for `scenes` only."""
    shortest: float | None = Field(default=None, ge=0)
    """Drop negatives with fewer words than this times the chosen response's. null drops none."""
    longest: float | None = Field(default=None, gt=0)
    """Drop negatives with more words than this times the chosen response's. null drops none."""


class SourceMix(Section):
    """Which negatives a stage gets, as shares that need not add up to 1."""

    dataset: float = Field(default=1.0, ge=0)
    """The rejected responses that came with the data."""
    other: float = Field(default=0.0, ge=0)
    """The chosen response of another image: easy, but there for any data."""
    beam: float = Field(default=0.0, ge=0)
    """On-policy: one hypothesis of a width-5 beam search that is not a gold response (paper, D.1)."""
    sample: float = Field(default=0.0, ge=0)
    """On-policy: a sample at `temperature` that is not a gold response."""
    perturb: float = Field(default=0.0, ge=0)
    """The chosen response with facts changed by a lexicon (objects, colours, numbers, actions, relations); exact on
    `scenes`."""
    shuffle: float = Field(default=0.0, ge=0)
    """The words of the chosen response in another order."""
    edit: float = Field(default=0.0, ge=0)
    """The chosen response with one fact changed by a language model (`negatives.editor`)."""
    per_prompt: int = Field(default=1, ge=1)
    """How many negatives a prompt gets."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of `sample`."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of `sample`: the likeliest tokens that have this probability together."""
    beam_width: int = Field(default=5, ge=2)
    """Width of `beam`."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest generated negative, in tokens."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts generated at once."""
    perturb_difficulty: list[Literal["hard", "medium", "easy"]] = Field(default=["hard"], min_length=1)
    """What `perturb` makes, drawn from this list: one fact changed, two, or all that can be."""
    filter: FilterSection = FilterSection()
    """Which negatives are dropped."""

    def shares(self) -> dict[str, float]:
        """Return the shares above 0, by source."""
        sources = ("dataset", "other", "beam", "sample", "perturb", "shuffle", "edit")
        return {name: share for name in sources if (share := getattr(self, name)) > 0}

    @model_validator(mode="after")
    def _some_source(self) -> SourceMix:
        if not self.shares():
            raise ValueError("every share is 0; give at least one source a share above 0")
        return self


class EditorSection(Section):
    """The language model that writes the source `edit`, behind any OpenAI-compatible endpoint."""

    base_url: str = ""
    """Address of the endpoint up to and with its version, for instance http://localhost:8000/v1."""
    model: str = ""
    """Name of the model, as the endpoint calls it."""
    key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; where it is not set none is sent. The key is never written
    anywhere."""
    images: bool = False
    """Show the picture to the model, for models that see."""
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    """What the endpoint is asked to hold the answer to. Whatever it sends is checked."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of the answers."""
    max_tokens: int = Field(default=200, ge=16)
    """Longest answer, in tokens."""
    max_changes: int = Field(default=6, ge=1)
    """Most words that an edit may insert, delete or exchange."""
    rewrites: int = Field(default=2, ge=0)
    """How often the model is told what is wrong with its answer and asked again."""
    attempts: int = Field(default=6, ge=1)
    """How often a request is sent while the server is busy, fails or does not answer, with growing pauses."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds to wait for an answer."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests under way at once."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Most requests begun in a minute; null sets no limit."""
    price_input: float = Field(default=0.0, ge=0)
    """Price of a million tokens that are sent."""
    price_output: float = Field(default=0.0, ge=0)
    """Price of a million tokens that come back."""
    max_cost: float | None = Field(default=None, gt=0)
    """Most that may be spent on a stage, in the currency of the prices. Nothing is asked where the estimate is above
    it, and no more once it is reached."""

    @staticmethod
    def ways() -> tuple[str, ...]:
        """Return the fields that say how to get answers and not which: they may change while a run is resumed."""
        where = ("base_url", "key_variable", "timeout", "attempts", "concurrency", "requests_per_minute")
        return (*where, "price_input", "price_output", "max_cost")

    @field_validator("key_variable")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):  # the value may be a key: it is not repeated
            raise ValueError(
                "negatives.editor.key_variable must be the name of an environment variable, in capitals, never the key"
            )
        return value

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", value):
            raise ValueError(
                "negatives.editor.base_url must be like http://localhost:8000/v1, without user, password or query"
            )
        return value.rstrip("/")

    @model_validator(mode="after")
    def _priced(self) -> EditorSection:
        if self.max_cost is not None and not self.price_input + self.price_output:
            raise ValueError("negatives.editor.max_cost needs price_input and price_output (per million tokens)")
        return self


class NegativesSection(Section):
    """Where the rejected responses of each stage come from."""

    stage1: SourceMix = SourceMix()
    """Negatives of SFT-C."""
    stage2: SourceMix = SourceMix()
    """Negatives of the preference stage."""
    editor: EditorSection = EditorSection()
    """Who writes the source `edit`."""
    seed: int = 0
    """Seed of the draw among sources."""

    @model_validator(mode="after")
    def _has_editor(self) -> NegativesSection:
        if (self.stage1.edit or self.stage2.edit) and not (self.editor.base_url and self.editor.model):
            raise ValueError("the source edit needs negatives.editor.base_url and negatives.editor.model")
        return self


class StageSection(Section):
    """What both stages share: optimiser, batch, length."""

    enabled: bool = True
    """Leave a stage out by setting this to false."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate of AdamW."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the stage's share of the data; `max_steps` overrides."""
    max_steps: int = Field(default=-1, ge=-1)
    """Number of updates; -1 goes by `epochs`."""
    batch_size: int = Field(default=32, ge=1)
    """Prompts per update, over all devices."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Prompts per forward pass on one device. Changes memory and speed, never the result."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the updates in which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """How the learning rate falls."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    save_steps: int = Field(default=100, ge=1)
    """Updates between checkpoints; a killed run goes on from the last one."""
    log_steps: int = Field(default=10, ge=1)
    """Updates between rows of metrics.jsonl."""
    include_eos: bool = True
    """Count the end-of-turn token as part of the response (in likelihoods and in ℓ̄)."""


class Stage1Section(StageSection):
    """Stage 1: SFT-C (paper, Eq. 4), or plain SFT."""

    objective: Literal["sft_c", "sft"] = "sft_c"
    """`sft_c` adds the regulariser on the negatives; `sft` is the plain likelihood."""
    regularizer: Literal["nll_floor", "nll_ceiling", "entropy", "label_smoothing", "hard_constraint"] = "nll_floor"
    """`nll_floor` is Eq. 4. `nll_ceiling` is what the paper's prose says. `entropy` rewards entropy on the negatives.
    `label_smoothing` smooths the positives. `hard_constraint` follows the constraint alone while it is violated."""
    weight: float = Field(default=0.1, ge=0)
    """λ of Eq. 4 (for `entropy`: weight of the entropy, in nats)."""
    nll_floor: float = Field(default=4.0, gt=0)
    """C of Eq. 4, in nats per token (or per response with `nll_reduction: sum`)."""
    hinge_scope: Literal["global_batch", "example"] = "global_batch"
    """Where the ReLU of Eq. 4 stands: on the mean over the global batch, as printed, or on each negative."""
    nll_reduction: Literal["mean", "sum"] = "mean"
    """Negative log-likelihood of a response: mean over its tokens, or sum."""
    epsilon: float = Field(default=0.1, gt=0, lt=1)
    """Share of the uniform distribution in `label_smoothing`."""


class Stage2Section(StageSection):
    """Stage 2: CW-DPO (paper, Eq. 6 and 7), or one of its relatives."""

    objective: Literal["cw_dpo", "dpo", "dpo_shift", "rpo"] = "cw_dpo"
    """`dpo_shift` is a fixed weight on the loser; `rpo` is DPO plus the chosen response's likelihood."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature of the preference model. The paper never states it."""
    floor: float = -3.0
    """ℓ_floor of Eq. 6: mean log-probability per token at which a negative counts half."""
    tau: float = Field(default=1.0, gt=0)
    """τ of Eq. 6: width of the transition, in nats per token."""
    detach: bool = True
    """No gradient through the cooling weight, as in Eq. 8."""
    w_min: float = Field(default=0.0, ge=0, le=1)
    """Least cooling weight: above 0 some ranking signal stays on cold negatives."""
    renormalise: bool = False
    """Scale the margin by 2/(1+w), so that the pulls on winner and loser add up to DPO's (ours, not the paper's)."""
    shift_weight: float = Field(default=0.5, ge=0, le=1)
    """The fixed weight of `dpo_shift`."""
    sft_weight: float = Field(default=1.0, ge=0)
    """α of `rpo`: weight of the chosen response's NLL per token."""
    reference: Literal["cached", "live"] = "cached"
    """Reference log-probabilities: computed once and kept on disk, or by a frozen model in every step."""


class EarlyStopSection(Section):
    """When a stage stops before its last update."""

    signal: Literal["accuracy", "chosen", "ranking", "ece", "tv"] = "accuracy"
    """`accuracy`: share of gold tokens that are the likeliest; `chosen`: log p per token of the chosen responses;
    `ranking`: share of pairs with the chosen response likelier; `ece`: calibration error; `tv`: drift."""
    patience: int = Field(default=5, ge=1)
    """Readings without an improvement after which to stop."""
    min_delta: float = Field(default=0.0, ge=0)
    """By how much a reading must be better to count as an improvement."""
    stages: list[Literal["stage1", "stage2"]] = ["stage2"]
    """Which stages may stop early."""


class InfluenceSection(Section):
    """How one update on a sample moves others, followed through training (paper, G)."""

    updates: int = Field(default=3, ge=1)
    """Training prompts that a step is taken on (and undone)."""
    observed: int = Field(default=4, ge=1)
    """Probe prompts whose chosen responses are observed."""
    eta: float = Field(default=1e-4, gt=0)
    """Size of the step (plain gradient descent)."""


class ProbeSection(Section):
    """What is measured on held-out prompts while training."""

    every: int = Field(default=20, ge=0)
    """Updates between probes; 0 turns them off."""
    prompts: int = Field(default=64, ge=1)
    """Held-out prompts, the same ones throughout a run."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts per forward pass of a probe."""
    distributions: bool = True
    """Keep the start's token distributions to measure TV and JS against (prompts × tokens × vocabulary numbers)."""
    tokens: int = Field(default=4, ge=0)
    """Of so many prompts, keep the likeliest tokens at every place of the gold response, at the start and now."""
    path: str | None = None
    """Your own probe prompts: a data file whose responses may have any role. Default: the first held-out rows."""
    kinds: list[Literal["own", "other_train", "other_test", "random", "shuffled", "random_shuffled"]] = []
    """Further kinds of response to follow beside chosen and rejected: the model's own sample, the answer to another
    training or held-out prompt, a training answer of equal length, the shuffled words of the chosen one and of that."""
    seed: int = 0
    """Seed of the draws that these kinds need."""
    captions: int = Field(default=0, ge=0)
    """Write answers (the five best of a beam search) to so many probe prompts at every reading, for CIDEr against the
    references, length and, on `scenes`, exact correctness. Takes longer than the rest of a reading."""
    on_diagnosis: Literal["warn", "stop"] = "warn"
    """What to do about a serious finding (squeezing, divergence, …): say it, or stop after a checkpoint."""
    early_stop: EarlyStopSection | None = None
    """Stop a stage when a signal of the probes no longer improves, and end with the best reading's weights."""
    influence: InfluenceSection | None = None
    """Follow the one-step influence of some training prompts on some probe prompts, at every probe."""


class EvaluationSection(Section):
    """What is measured at the end, before against after Stage 2."""

    prompts: int = Field(default=256, ge=0)
    """Held-out prompts that are captioned and scored; 0 leaves the step out."""
    batch_size: int = Field(default=32, ge=1)
    """Prompts at once."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest caption, in tokens."""
    samples: int = Field(default=12, ge=0)
    """Pictures with captions before and after that the report shows."""


class Recipe(Section):
    """A whole run of Algorithm 1."""

    name: str = "cwdpo run"
    """Title of the report."""
    seed: int = 0
    """Fixes data order, adapters, sampling and dropout."""
    model: ModelSection = ModelSection()
    """The model."""
    data: DataSection = DataSection()
    """The data."""
    negatives: NegativesSection = NegativesSection()
    """The negatives."""
    stage1: Stage1Section = Stage1Section()
    """Stage 1."""
    stage2: Stage2Section = Stage2Section()
    """Stage 2."""
    probes: ProbeSection = ProbeSection()
    """Probes."""
    evaluation: EvaluationSection = EvaluationSection()
    """Evaluation."""
    report_to: list[str] = []
    """Trackers of transformers' Trainer: tensorboard, wandb, trackio, …"""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for name, stage in (("stage1", self.stage1), ("stage2", self.stage2)):
            if stage.batch_size % min(stage.micro_batch_size, stage.batch_size):
                raise ValueError(
                    f"{name}.batch_size = {stage.batch_size} is not a multiple of "
                    f"{name}.micro_batch_size = {stage.micro_batch_size}; change one of the two"
                )
        if self.data.held_out >= 1 and self.data.held_out != int(self.data.held_out):
            raise ValueError(f"data.held_out = {self.data.held_out}: must be a share below 1 or a whole number of rows")
        if not self.stage1.enabled and not self.stage2.enabled:
            raise ValueError("stage1.enabled and stage2.enabled are both false; enable one")
        if self.model.train_fully and self.model.lora is None:
            raise ValueError("model.train_fully needs model.lora; without adapters use model.freeze")
        if both := set(self.model.freeze) & set(self.model.train_fully):
            raise ValueError(f"model.freeze and model.train_fully both name {sorted(both)}; name each part once")
        if (self.data.path == "scenes") != (self.data.format in ("scenes",)) and self.data.format != "auto":
            raise ValueError("data.format: scenes goes with data.path: scenes and with no other; use format: auto")
        return self

    def warnings(self) -> list[str]:
        """Return what is allowed but probably not meant, one line each."""
        found: list[str] = []
        one, two = self.stage1, self.stage2
        eq4 = one.enabled and one.objective == "sft_c" and one.regularizer in ("nll_floor", "hard_constraint")
        cooled = two.enabled and two.objective == "cw_dpo"
        if eq4 and cooled and one.nll_reduction == "mean" and one.nll_floor > -two.floor:
            found.append(
                f"stage1.nll_floor = {one.nll_floor:g} is above -stage2.floor = {-two.floor:g}: Stage 1 pushes its "
                "negatives to where Stage 2 already counts them less than half (the paper's own values do this)"
            )
        return found

    def to_yaml(self) -> str:
        """Return the recipe with every field, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
