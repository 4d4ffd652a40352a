"""Measurements of a model: perplexity and divergence on a text, and speed. Models come in loaded; nothing here opens a file but the text."""
