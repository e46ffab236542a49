"""Sources of negatives, one file each."""
