"""Raw rows of the files: one after the other, each with its number, nothing understood yet."""
