"""Makes tests/model/data/perplexity.npz: ids of a text and its perplexity under transformers on dequantised GGUF weights.

`python tests/golden/perplexity.py FILE.gguf...`, with torch, transformers and gguf installed; the files are the catalogue's, under their names.
The text is this repository's own documents and sources (Apache-2.0), cut into 20 lines of 512 tokens. A file that is there already keeps its
ids and gains or renews the numbers of the models named.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from qwenbox.chat.tokenizer import Tokenizer  # noqa: E402
from qwenbox.weights.gguf import read_gguf  # noqa: E402

OUTPUT = ROOT / "tests" / "model" / "data" / "perplexity.npz"
LINES, LENGTH = 20, 512
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def text() -> str:
    """Documents first, then sources."""
    return "\n".join(path.read_text() for folder, glob in (("docs", "*.md"), ("src", "*.py")) for path in sorted((ROOT / folder).rglob(glob)))


def token_ids(path: Path) -> np.ndarray:
    ids = Tokenizer.from_gguf(read_gguf(path).metadata).encode(text(), control=False)
    return np.array(ids[: LINES * LENGTH], np.int32).reshape(LINES, LENGTH)


def dequantised(path: Path) -> transformers.PreTrainedModel:
    """Qwen2 in float32, its weights dequantised by the gguf package."""
    reader = gguf.GGUFReader(path)

    def field(key: str) -> float:
        return reader.fields[f"qwen2.{key}"].contents()

    config = transformers.Qwen2Config(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(config)
    state = {}
    for tensor in reader.tensors:
        *layer, name, kind = tensor.name.split(".")
        prefix = f"model.layers.{layer[1]}." if layer else ""
        shape = tuple(int(extent) for extent in reversed(tensor.shape))
        state[f"{prefix}{_NAMES[name]}.{kind}"] = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape).copy())
    model.load_state_dict(state, strict=True, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are on the meta device and in no file
    return model.eval()


def perplexity(model: transformers.PreTrainedModel, ids: np.ndarray) -> float:
    total = 0.0
    with torch.no_grad():
        for line in torch.from_numpy(ids).long():
            logits = model(line[None], use_cache=False).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits[:-1].double(), line[1:], reduction="sum"))
    return float(np.exp(total / (LINES * (LENGTH - 1))))


def main() -> None:
    stored: dict[str, np.ndarray] = {}
    if OUTPUT.exists():
        with np.load(OUTPUT) as old:
            stored = dict(old)
    for path in map(Path, sys.argv[1:]):
        stored.setdefault("ids", token_ids(path))
        value = perplexity(dequantised(path), stored["ids"])
        stored[path.stem] = np.float64(value)
        print(path.stem, value, flush=True)
        np.savez_compressed(OUTPUT, **stored)


if __name__ == "__main__":
    main()
