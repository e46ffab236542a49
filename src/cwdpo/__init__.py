"""Preference finetuning of vision-language models that shows its learning dynamics."""

from cwdpo._version import __version__

__all__ = ["__version__"]
