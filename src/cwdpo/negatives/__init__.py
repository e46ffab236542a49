"""Where rejected responses come from."""
