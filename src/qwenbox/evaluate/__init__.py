"""Measurements of a model: on a text, on problems, against a reference, and its speed. Models come in loaded; data are the caller's files."""
