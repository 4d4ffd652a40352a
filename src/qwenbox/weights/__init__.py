"""Files of weights -> named tensors. Bounds are checked before any view is made; knows no layers."""

from .gguf import GGUF, read_gguf

__all__ = ["GGUF", "read_gguf"]
