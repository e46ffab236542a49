"""One file for each family of models with peculiarities. A new one is a file here and a row of tests/tiny_models.py."""
