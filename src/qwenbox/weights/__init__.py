"""Files of weights -> named tensors. Bounds are checked before any view is made; knows no layers."""

from .gguf import GGUF, read_gguf
from .safetensors import Checkpoint, read_directory, read_safetensors

__all__ = ["GGUF", "Checkpoint", "read_directory", "read_gguf", "read_safetensors"]
