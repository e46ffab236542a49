"""Models as they are on disk: loading, processors, adapters, generation, content identity."""
