"""The embedded world: pictures of coloured shapes whose captions have an exact meaning."""
