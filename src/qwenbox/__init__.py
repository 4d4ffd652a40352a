"""qwenbox: run a Qwen model of your own. `from qwenbox import LLM`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenbox.llm import LLM as LLM

__version__ = "0.1.0"
__all__ = ["LLM", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `qwenbox --help` does not load an engine.
    if name == "LLM":
        from qwenbox.llm import LLM

        return LLM
    raise AttributeError(f"module 'qwenbox' has no attribute {name!r}")
