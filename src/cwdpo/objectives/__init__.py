"""Batch and scores to a loss: Stage 1 and Stage 2 objectives."""
