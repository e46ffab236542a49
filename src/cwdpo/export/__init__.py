"""After training: a model that is checked to be the one that was trained, its card, and where it is published."""
