"""The exception tree.

QwenboxError
  UsageError            a command, option or setting that cannot be honoured
  RequestError          a request that cannot be honoured (HTTP 400)
    ContextLengthError  prompt and answer do not fit the window
    NotFoundError       no such model, route or object (404)
    PayloadTooLargeError  (413)
    AuthenticationError   (401)
  OverloadedError       try again later (429 or 503)
  ModelFormatError      a file that is not what it says
    UnsupportedModelError  an architecture, rope type or quantisation we do not run
  DownloadError         a model that could not be fetched or verified
  EngineError           the engine failed a request through no fault of the request (500)
    WorkerDiedError     the worker ended while the request ran
    NumericalError      the model produced NaN
  ArchiveError          conversations that cannot be read or written (503)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple


class Problem(NamedTuple):
    """What is wrong, as a person is told, and the code by which a page says it in another language."""

    message: str
    code: str | None = None


class QwenboxError(Exception):
    """Base of all errors that we raise on purpose. The message is for a person and says the way out."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.error_code = code if code is not None else self.code
        self.http_status = status if status is not None else self.status
        self.retry_after = retry_after

    @property
    def problem(self) -> Problem:
        return Problem(self.message, self.error_code)

    def to_wire(self) -> dict[str, Any]:
        """As plain data that crosses a process border; `from_wire` makes an error of the same class of it."""
        return {
            "class": type(self).__name__,
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.error_code,
            "status": self.http_status,
            "retry_after": self.retry_after,
        }

    @staticmethod
    def from_wire(error: Mapping[str, Any]) -> QwenboxError:
        cls = _CLASSES.get(str(error["class"]), EngineError)
        return cls(
            error["message"], param=error.get("param"), code=error.get("code"), status=error.get("status"), retry_after=error.get("retry_after")
        )


class UsageError(QwenboxError):
    exit_code = 2


class RequestError(QwenboxError):
    status = 400
    type = "invalid_request_error"


class ContextLengthError(RequestError):
    code = "context_length_exceeded"


class NotFoundError(RequestError):
    status = 404
    type = "not_found_error"


class PayloadTooLargeError(RequestError):
    status = 413


class AuthenticationError(RequestError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class OverloadedError(QwenboxError):
    status = 503
    type = "overloaded_error"


class ModelFormatError(QwenboxError):
    exit_code = 65
    code = "model_format"


class UnsupportedModelError(ModelFormatError):
    code = "unsupported_model"


class DownloadError(QwenboxError):
    exit_code = 69
    code = "download_failed"


class EngineError(QwenboxError):
    code = "engine_error"


class WorkerDiedError(EngineError):
    code = "worker_died"


class NumericalError(EngineError):
    code = "numerical_error"


class ArchiveError(QwenboxError):
    status = 503
    code = "archive_failed"


def _tree(cls: type[QwenboxError]) -> list[type[QwenboxError]]:
    return [cls] + [deeper for child in cls.__subclasses__() for deeper in _tree(child)]


_CLASSES: dict[str, type[QwenboxError]] = {cls.__name__: cls for cls in _tree(QwenboxError)}


def gigabytes(count: int) -> str:
    """Bytes as messages name them."""
    return f"{count / 1e9:.2f} GB"
