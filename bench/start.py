"""The first minute: from the start of a command to its page, and to the first token of an answer.

    python bench/start.py disk|hub|index|clone [--model FILE.gguf] [--json]

Each begins with an empty home. disk: a store as Ollama leaves it, made by hand, with a link to FILE. hub: a model hub on loopback whose models are
tiny, random, and pose as the sizes of the catalogue. index: no hub, so the practice model comes from the package index. clone: `make run` in a fresh
clone, without a hub. A question is asked as soon as the page is there.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import httpx2  # noqa: E402

from bench.machine import commit, machine_name  # noqa: E402

NOWHERE = "http://127.0.0.1:9"
QUESTION = {"messages": [{"role": "user", "content": "Write one line about the sea."}], "max_tokens": 16, "stream": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("disk", "hub", "index", "clone"))
    parser.add_argument("--model", type=Path, help="for disk")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _hub(asked.case) as endpoint:
        home = Path(folder) / "home"
        home.mkdir()
        if asked.case == "disk":
            _ollama(home / ".ollama" / "models", asked.model)
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "qwenbox", "--no-browser"]
        where = home
        if asked.case == "clone":
            where = Path(folder) / "clone"
            subprocess.run(["git", "clone", "-q", str(ROOT), str(where)], check=True)
            command = ["make", "run"]
        else:
            environment["PYTHONPATH"] = str(ROOT / "src")
        result = {"machine": machine_name(), "commit": commit(), "case": asked.case, **measure(command, where, environment)}
        result["home_mb"] = round(_size(home) / 1e6, 1)
        if asked.case == "clone":
            result["clone_mb"] = round(_size(where) / 1e6, 1)
    if not asked.json:
        seconds = f"page after {result['page_s']:.2f} s, first token after {result['first_token_s']:.2f} s"
        print(f"{seconds}, {result['home_mb']} MB in the home: {result['model']}")
    print(json.dumps(result))


def measure(command: list[str], where: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Seconds since the command began."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("qwenbox listens on "))
        threading.Thread(target=process.stdout.read, daemon=True).start()  # nobody reads it, and it must not fill up
        url, listening = line.split()[-1], time.monotonic() - began
        with httpx2.Client(base_url=url, trust_env=False, timeout=900) as client:
            client.get("/").raise_for_status()
            page = time.monotonic() - began
            with client.stream("POST", "/v1/chat/completions", json=QUESTION) as answer:
                answer.raise_for_status()
                first = next(time.monotonic() for text in answer.iter_lines() if re.search(r'"(content|reasoning_content)": ?"[^"]', text)) - began
            return {"listening_s": listening, "page_s": page, "first_token_s": first, "model": client.get("/health").json()["model"]}
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(30)


@contextlib.contextmanager
def _hub(case: str) -> Iterator[str]:
    if case != "hub":
        yield NOWHERE
        return
    from tests.server.minute import catalogue_hub

    with catalogue_hub() as fake:
        yield fake.url


def _ollama(store: Path, model: Path) -> None:
    """`ollama pull qwen3:8b` would leave such a store; the blob is a link, whose name is no digest of a large file."""
    digest = hashlib.sha256(str(model).encode()).hexdigest()
    (store / "blobs").mkdir(parents=True)
    (store / "blobs" / f"sha256-{digest}").symlink_to(model.resolve())
    manifest = store / "manifests" / "registry.ollama.ai" / "library" / "qwen3" / "8b"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": model.stat().st_size}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_symlink() and path.is_file())


if __name__ == "__main__":
    main()
