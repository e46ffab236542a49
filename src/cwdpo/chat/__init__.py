"""Language models behind OpenAI-compatible endpoints: requests, what they cost, and answers that are kept."""
