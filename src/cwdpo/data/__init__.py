"""Prompt groups: the schema, the readers of other people's formats, images, splits."""

from cwdpo.data.export import with_image_files, write_groups
from cwdpo.data.fields import RowError
from cwdpo.data.formats import FORMATS, detect_format
from cwdpo.data.grouped import GroupDataset, groups_from_dataset
from cwdpo.data.images import ImageLimits, check_image, open_image
from cwdpo.data.places import DEFAULT_PROMPT
from cwdpo.data.rows import BadRow, DataSource, LoadedData, load_groups, write_rejected
from cwdpo.data.schema import CHOSEN, DIFFICULTIES, REJECTED, ImageRef, PromptGroup, Response, user_message
from cwdpo.data.splits import StageSplit, split_indices, split_stages

__all__ = [
    "CHOSEN",
    "DEFAULT_PROMPT",
    "DIFFICULTIES",
    "FORMATS",
    "REJECTED",
    "BadRow",
    "DataSource",
    "GroupDataset",
    "ImageLimits",
    "ImageRef",
    "LoadedData",
    "PromptGroup",
    "Response",
    "RowError",
    "StageSplit",
    "check_image",
    "detect_format",
    "groups_from_dataset",
    "load_groups",
    "open_image",
    "split_indices",
    "split_stages",
    "user_message",
    "with_image_files",
    "write_groups",
    "write_rejected",
]
