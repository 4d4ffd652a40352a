"""Conversations on this machine's disk: kept, searched, exported."""

from __future__ import annotations

from .archive import Archive
from .conversation import Conversation, StoredMessage, Summary

__all__ = ["Archive", "Conversation", "StoredMessage", "Summary"]
