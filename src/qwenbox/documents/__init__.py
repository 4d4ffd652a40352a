"""The text of a file that somebody gives us: txt, md, pdf, docx."""

from .reader import MAX_DOCUMENT_BYTES, Document, read_document

__all__ = ["MAX_DOCUMENT_BYTES", "Document", "read_document"]
