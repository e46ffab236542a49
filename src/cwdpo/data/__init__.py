"""Prompt groups: the schema, the readers of other people's formats, images, splits."""

from cwdpo.data.detect_format import detect_format
from cwdpo.data.hf_dataset import GroupDataset, groups_from_dataset
from cwdpo.data.images import ImageLimits, check_image, open_image
from cwdpo.data.read_source import BadRow, DataSource, LoadedData, load_groups, write_rejected
from cwdpo.data.row_context import DEFAULT_PROMPT
from cwdpo.data.row_format import FORMATS, Format
from cwdpo.data.row_values import RowError
from cwdpo.data.schema import CHOSEN, DIFFICULTIES, REJECTED, ImageRef, PromptGroup, Response, user_message
from cwdpo.data.write_groups import with_image_files, write_groups

__all__ = [
    "CHOSEN",
    "DEFAULT_PROMPT",
    "DIFFICULTIES",
    "FORMATS",
    "REJECTED",
    "BadRow",
    "DataSource",
    "Format",
    "GroupDataset",
    "ImageLimits",
    "ImageRef",
    "LoadedData",
    "PromptGroup",
    "Response",
    "RowError",
    "check_image",
    "detect_format",
    "groups_from_dataset",
    "load_groups",
    "open_image",
    "user_message",
    "with_image_files",
    "write_groups",
    "write_rejected",
]
