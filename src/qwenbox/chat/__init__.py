"""Text to tokens to meaning: tokenizer, chat templates, and the machine that turns ids into events. Knows no tensors and no HTTP."""
