"""Prompt groups: the schema, the readers of other people's formats, images, splits."""
