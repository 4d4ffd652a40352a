"""How the rest of the house reaches an engine: one protocol, an engine in a thread of this process, an engine in a worker process.

Both take plans from any thread and call `deliver` with each output, from one thread of their own, or from the caller's within `submit` where a
request is refused at once. `deliver` has to be quick; one that raises ends its own request and nothing else.
"""

from qwenbox.engine.engine import EngineStats
from qwenbox.engine.in_process import InProcessEngine
from qwenbox.engine.options import EngineOptions
from qwenbox.engine.protocol import Deliver, EngineClient, EngineState, ModelInfo
from qwenbox.engine.supervisor import Report, WorkerEngine

__all__ = ["Deliver", "EngineClient", "EngineOptions", "EngineState", "EngineStats", "InProcessEngine", "ModelInfo", "Report", "WorkerEngine"]
