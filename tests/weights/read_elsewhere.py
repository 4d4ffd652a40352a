"""What another program makes of a directory that `qwenbox quantize` wrote, beside what we make of it. By hand:

    qwenbox quantize MODEL OUT
    python tests/weights/read_elsewhere.py OUT vllm PYTHON

PYTHON is that of an environment with the program: vllm (a CPU build, whose 4-bit products want AVX-512), transformers (with gptqmodel; 8 bits
want optimum too) or gptqmodel itself; record_quantised.py and bench/engines.py say what to install. Both read the same text: shown are the share of
places where the likeliest next token is the same, the difference of the text's log-probabilities, and a greedy answer of each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PLACES, NEW = 192, 24
Read = dict[str, Any]
"""`logprobs` of the tokens behind the first, `tops`, the likeliest in their places, and the `answer`'s ids."""


def read(rows: Any, ids: list[int], answer: list[int]) -> Read:
    """Of logits [places, vocabulary]."""
    wide = np.asarray(rows, np.float64)[:-1]
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return {"logprobs": wide[np.arange(len(ids) - 1), ids[1:]].tolist(), "tops": wide.argmax(-1).tolist(), "answer": answer}


# --- what runs in the other environment ----------------------------------------------------------------------------


def with_vllm(path: str, ids: list[int], prompt: list[int]) -> Read:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    import vllm

    llm = vllm.LLM(model=path, dtype="bfloat16", max_model_len=512, max_num_seqs=2, enforce_eager=True, disable_log_stats=True)

    def run(tokens: list[int], **options: Any) -> Any:
        return llm.generate([{"prompt_token_ids": tokens}], vllm.SamplingParams(temperature=0, **options), use_tqdm=False)[0]

    answer = run(prompt, max_tokens=NEW, ignore_eos=True).outputs[0].token_ids
    places = run(ids, max_tokens=1, prompt_logprobs=1).prompt_logprobs[1:]
    return {
        "logprobs": [place[token].logprob for place, token in zip(places, ids[1:], strict=True)],
        "tops": [next(token for token, each in place.items() if each.rank == 1) for place in places],
        "answer": list(answer),
    }


def with_transformers(path: str, ids: list[int], prompt: list[int]) -> Read:
    import torch
    import transformers

    return _by_torch(transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), ids, prompt)


def with_gptqmodel(path: str, ids: list[int], prompt: list[int]) -> Read:
    from gptqmodel import GPTQModel

    return _by_torch(GPTQModel.load(path, device="cpu").model, ids, prompt)


def _by_torch(model: Any, ids: list[int], prompt: list[int]) -> Read:
    import torch

    with torch.no_grad():
        rows = model(torch.tensor([ids])).logits[0].float().numpy()
        tokens = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)[0]
    print({type(module).__name__ for module in model.modules() if "Linear" in type(module).__name__}, file=sys.stderr)
    return read(rows, ids, tokens[len(prompt) :].tolist())


PROGRAMS = {"vllm": with_vllm, "transformers": with_transformers, "gptqmodel": with_gptqmodel}


# --- what runs in ours ---------------------------------------------------------------------------------------------


def ours(path: Path) -> tuple[list[int], list[int], Read]:
    """Ids of the text and of the prompt, and what we make of them."""
    sys.path.insert(0, str(ROOT / "src"))  # here: the other environment runs this file too
    from qwenbox.llm import open_chat
    from qwenbox.model.load import load_model
    from qwenbox.types import Batch, Span

    with closing(open_chat(path)) as chat:
        text = (ROOT / "bench" / "data" / "heldout.txt").read_text(encoding="utf-8")
        ids, prompt = chat.tokenizer.encode(text[: 8 * PLACES])[:PLACES], chat.tokenizer.encode("How much is 41+8+26? 41+8=")
    pages = np.arange(8, dtype=np.int32)
    with closing(load_model(path, weights="stored", context_length=256, num_pages=8, max_batch_tokens=256, max_sequences=256)) as model:
        rows = model.run(Batch(np.asarray(ids, np.int32), [Span(0, len(ids), 0, pages)], np.arange(len(ids), dtype=np.int32)))
        answer: list[int] = []
        while len(answer) < NEW:
            tokens = np.asarray([*prompt, *answer], np.int32)
            logits = model.run(Batch(tokens, [Span(0, len(tokens), 0, pages)], np.asarray([len(tokens) - 1], np.int32)))
            answer.append(int(logits[0].argmax()))
    return list(ids), list(prompt), read(rows, list(ids), answer)


def main(path: Path, program: str, python: str) -> None:
    ids, prompt, here = ours(path)
    job = json.dumps([program, str(path), ids, prompt])
    done = subprocess.run([python, __file__], input=job, stdout=subprocess.PIPE, text=True, check=True, env=environment(python))
    there: Read = json.loads(done.stdout.splitlines()[-1])
    differences = np.abs(np.subtract(here["logprobs"], there["logprobs"]))
    same = next((n for n, (a, b) in enumerate(zip(here["answer"], there["answer"], strict=True)) if a != b), NEW)
    print(
        f"{path.name} by {program}: likeliest token the same in {np.mean(np.equal(here['tops'], there['tops'])):.3f} of {len(differences)} places, "
        f"log-probabilities {np.mean(here['logprobs']):.4f} here, {np.mean(there['logprobs']):.4f} there, apart by {np.median(differences):.4f} "
        f"(median), {differences.max():.4f} (most); the first {same} of {NEW} greedy tokens are the same"
    )


def environment(python: str) -> dict[str, str]:
    """torch compiles nothing for so few words; vLLM's CPU build asks for Intel's OpenMP to be there first."""
    openmp = Path(python).parents[1] / "lib" / "libiomp5.so"
    return dict(os.environ) | {"TORCHDYNAMO_DISABLE": "1"} | ({"LD_PRELOAD": str(openmp)} if openmp.exists() else {})


if __name__ == "__main__":
    if len(sys.argv) == 1:
        name, where, tokens, begin = json.loads(sys.stdin.read())
        answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what programs print is not an answer
        print(json.dumps(PROGRAMS[name](where, tokens, begin)), file=answers, flush=True)
    else:
        main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
