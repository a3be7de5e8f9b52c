"""Messages and text of a row, rendered by a tokenizer's chat template."""
