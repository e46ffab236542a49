"""The loop: a Trainer subclass with the objective injected, its configs and callbacks."""
