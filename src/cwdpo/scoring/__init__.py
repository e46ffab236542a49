"""K responses of a prompt to per-token log-probabilities: collator, scorers, reference cache."""
