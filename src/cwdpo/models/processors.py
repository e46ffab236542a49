"""Processors as they are on disk, with or without torchvision.

The processors of the Qwen-VL family and of SmolVLM load a video processor, which needs torchvision. Where torchvision
is missing we load the same class without its video part: images and text are processed by the stock code, and what is
saved is what the stock class saves, so an installation with torchvision reads it back whole.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cwdpo.errors import ModelError, one_line
from cwdpo.models.model_checks import model_folder

if TYPE_CHECKING:
    from transformers.processing_utils import ProcessorMixin

__all__ = ["image_only", "load_processor"]

_CONFIG_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_VIDEO_TYPES = {
    "Qwen2VLProcessor": "Qwen2VLVideoProcessor",
    "Qwen2_5_VLProcessor": "Qwen2VLVideoProcessor",
    "Qwen3VLProcessor": "Qwen3VLVideoProcessor",
    "SmolVLMProcessor": "SmolVLMVideoProcessor",
}
"""The video processor that each stock class is saved with, for directories that name none."""


def load_processor(
    path: str | Path,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    trust_remote_code: bool = False,
) -> ProcessorMixin:
    """Load the processor of a model: a tokenizer, an image processor and what joins them.

    Args:
        path: A folder, or a name on the Hub.
        min_pixels: Smallest area of an image in pixels after resizing, in place of the saved one (Qwen-VL family).
        max_pixels: Largest area, likewise; with `min_pixels` it bounds the number of image tokens.
        trust_remote_code: Run a processor class that comes with the files.

    Returns:
        The stock class of transformers; without torchvision a subclass of it that refuses videos.

    Raises:
        ModelError: There is no processor at `path`, it is broken, it needs a package that is missing, or its images
            have no pixel bounds to set.
    """
    name = str(path)
    model_folder(name)
    try:
        processor = _from_pretrained(name, trust_remote_code)
    except ImportError as error:
        raise ModelError(f"{name}: its processor needs a package that is missing: {one_line(error)}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"{name}: no processor could be loaded ({one_line(error, 160)}); the folder must hold what "
            "processor.save_pretrained writes: processor_config.json or preprocessor_config.json, and a tokenizer"
        ) from error
    if not all(hasattr(processor, part) for part in ("tokenizer", "image_processor")):
        raise ModelError(
            f"{name}: found only a {type(processor).__name__}, no processor of images and text; copy "
            "processor_config.json or preprocessor_config.json of the original model into the folder"
        )
    _set_pixel_bounds(processor, name, min_pixels, max_pixels)
    return processor


@functools.cache
def image_only(stock: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Return `stock` without its video processor, under the same name.

    Args:
        stock: A processor class of transformers whose `__init__` takes `video_processor` after the other parts.

    Returns:
        A subclass whose instances are made from the other parts alone. It is saved as `stock` is, video settings
        included: those that were loaded or, where there were none, defaults with the image's patch sizes.
    """

    class ImageOnly(stock):
        video_settings: dict[str, Any] | None = None

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in super().get_attributes() if part != "video_processor"]

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
            processor: Any = super().from_args_and_dict(args, processor_dict, video_processor=None, **kwargs)
            processor.video_settings = processor_dict.get("video_processor")
            return processor

        def to_dict(self) -> dict[str, Any]:
            return super().to_dict() | {"video_processor": self.video_settings or self._default_video_settings()}

        def _default_video_settings(self) -> dict[str, Any]:
            sizes = ("patch_size", "temporal_patch_size", "merge_size")
            known = {key: getattr(self.image_processor, key) for key in sizes if hasattr(self.image_processor, key)}
            kind = _VIDEO_TYPES.get(stock.__name__)
            return known if kind is None else {"video_processor_type": kind, **known}

        def __reduce__(self) -> tuple[Any, ...]:
            return _rebuild, (stock,), self.__dict__

    # transformers writes the name of the class to disk and looks it up when it reads.
    ImageOnly.__name__ = ImageOnly.__qualname__ = stock.__name__
    ImageOnly.__doc__ = f"{stock.__name__} without videos: torchvision is not installed."
    return ImageOnly


def _rebuild(stock: type[ProcessorMixin]) -> ProcessorMixin:
    """Make the empty instance that `pickle` fills: worker processes cannot import a class made at run time."""
    made = image_only(stock)
    return made.__new__(made)


def _from_pretrained(name: str, trust_remote_code: bool) -> ProcessorMixin:
    from transformers import AutoProcessor
    from transformers.utils.import_utils import is_torchvision_available

    stock = None if is_torchvision_available() else _stock_class(name)
    if stock is None or "video_processor" not in stock.get_attributes():
        return cast("ProcessorMixin", AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code))
    processor: Any = image_only(stock).from_pretrained(name, trust_remote_code=trust_remote_code)
    if processor.video_settings is None:
        processor.video_settings = _read_config(name, "video_preprocessor_config.json")
    return processor


def _stock_class(name: str) -> type[ProcessorMixin] | None:
    """Return the class of transformers that the files name, in the order in which AutoProcessor looks."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

    for file in (*_CONFIG_FILES, "tokenizer_config.json"):
        class_name = (_read_config(name, file) or {}).get("processor_class")
        if class_name is not None:
            return processor_class_from_name(class_name)
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError):
        return None
    return cast("type[ProcessorMixin] | None", PROCESSOR_MAPPING.get(type(config), None))


def _read_config(name: str, file: str) -> dict[str, Any] | None:
    from transformers.utils.hub import cached_file

    found = cached_file(
        name,
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


def _set_pixel_bounds(processor: Any, name: str, min_pixels: int | None, max_pixels: int | None) -> None:
    if min_pixels is None and max_pixels is None:
        return
    images = processor.image_processor
    size = dict(images.size)
    if not hasattr(images, "merge_size") or not {"shortest_edge", "longest_edge"} <= size.keys():
        raise ModelError(
            f"{name}: {type(images).__name__} has no pixel bounds (its size is {size}); leave out min_pixels and "
            "max_pixels, they are for the Qwen-VL family"
        )
    low = size["shortest_edge"] if min_pixels is None else min_pixels
    high = size["longest_edge"] if max_pixels is None else max_pixels
    if not 0 < low <= high:
        raise ModelError(f"{name}: min_pixels {low} and max_pixels {high} leave no image size; 0 < min <= max")
    images.size = type(images.size)(shortest_edge=low, longest_edge=high)
