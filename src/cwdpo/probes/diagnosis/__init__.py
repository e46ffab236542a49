"""What goes wrong in a run, by name: rules over probe readings and logged metrics."""
