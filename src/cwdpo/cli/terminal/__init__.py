"""What commands have in common: options, the terminal, tables."""
