"""What a run needs before it is started: memory, arithmetic, time and disk of every step, found by running it dry."""
