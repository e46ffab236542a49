"""A run directory, shown: one self-contained HTML file."""
