"""One file a format: each turns a raw row into prompt groups, or says why not."""
