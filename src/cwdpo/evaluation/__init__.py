"""Captions and how good they are."""
