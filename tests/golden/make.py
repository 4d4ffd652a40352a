"""Makes the tiny checkpoints and the golden logits and hidden states beside this file. Needs torch and transformers; `python tests/golden/make.py`.

The oracle is transformers, run in float64 on the weights as our engine has them (for int8 and int4: dequantised after our rounding). Beside
each logit stands a bound on how far the engine, which follows docs/numeric-contract.md, may be from it. Its derivation:

* Each place where the contract rounds on purpose adds an unknown error to a value of the network: keys and values to bf16 (at most half a unit
  of the last of 8 bits), inputs of quantised matrices to int8 (at most half of sa = amax / 127). Call the value e and the bound of its error
  h_e. To first order a logit then moves by sum_e J_e d_e with |d_e| <= h_e, where J_e, the derivative of the logit by the value, comes from
  automatic differentiation. The d_e are treated as independent with mean 0, so Hoeffding's inequality gives
  P(|sum| > t) <= 2 exp(-t^2 / (2 sum (J_e h_e)^2)), and t follows from the chance of one false alarm among all logits, FALSE_ALARM.
* float32 arithmetic: the output of a matrix of K inputs is off by at most (K + 64) u sum_k |w_k x_k|, u = 2^-24: K roundings of the sum, and 64
  units for what norms, SwiGLU and residuals did to the inputs. A score q.k is off by at most (d + 8) u sum |q_i k_i|, and by 3 u p |q| |k|
  for the angle at position p, which transformers keeps in float32. These errors are not independent: their terms |J_e| h_e are simply added.

A choice of experts is discrete: the script fails where the same bound says that a router could decide otherwise, and another seed is needed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "src"))

from qwenbox.kernels import quants  # noqa: E402
from qwenbox.model.forms import Forms  # noqa: E402
from qwenbox.types import Tensor  # noqa: E402

ALL_ATTENTION_FUNCTIONS.register("golden", lambda *_, **__: None)  # a name that models may be made with; `watched` fills it

FALSE_ALARM = 1e-6
VARIANTS = ("stored", "int8", "int4")
TOKENS, EXPERT_TOKENS = 12, 6
"""Fewer where each token must also choose its experts safely."""
U = 2.0**-24

_BASE = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}

# name: (configuration, the checkpoint whose weights it shares, seed)
MODELS: dict[str, tuple[Callable[[], Any], str, int]] = {
    "qwen3": (lambda: transformers.Qwen3Config(**_BASE, head_dim=48, rope_parameters=_PLAIN), "qwen3", 1),
    "qwen3_yarn": (lambda: transformers.Qwen3Config(**_BASE, head_dim=48, rope_parameters=_YARN), "qwen3", 1),
    "qwen2_tied": (lambda: transformers.Qwen2Config(**_BASE, tie_word_embeddings=True, rope_parameters=_PLAIN), "qwen2_tied", 2),
    "qwen3_moe": (
        lambda: transformers.Qwen3MoeConfig(
            **_BASE,
            head_dim=32,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            norm_topk_prob=True,
            decoder_sparse_step=2,
            rope_parameters=_PLAIN,
        ),
        "qwen3_moe",
        4,
    ),
    "qwen2_moe": (
        lambda: transformers.Qwen2MoeConfig(
            **_BASE,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=64,
            shared_expert_intermediate_size=96,
            mlp_only_layers=[1],
            rope_parameters=_PLAIN,
        ),
        "qwen2_moe",
        4,
    ),
}


def random_model(name: str) -> Any:
    """The transformers model, its weights drawn by NumPy and rounded to bf16, in float64."""
    make, _, seed = MODELS[name]
    config = make()
    config._attn_implementation, config._experts_implementation = "golden", "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            values = generator.standard_normal(tuple(parameter.shape))
            if key.endswith("norm.weight"):
                values = 1 + 0.2 * values
            elif key.endswith("bias"):
                values = 0.3 * values
            elif "embed_tokens" not in key or config.tie_word_embeddings:
                values = values / math.sqrt(parameter.shape[-1])
            parameter.copy_(torch.from_numpy(values).to(torch.bfloat16).double())
    return model


def checkpoint_tensors(model: Any) -> dict[str, torch.Tensor]:
    """As transformers saves it: experts apart, a tied head left out."""
    out: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        prefix, _, last = key.rpartition(".")
        if last == "gate_up_proj":
            for e, (gate, up) in enumerate(zip(*(half for half in value.chunk(2, dim=1)), strict=True)):
                out[f"{prefix}.{e}.gate_proj.weight"], out[f"{prefix}.{e}.up_proj.weight"] = gate, up
        elif last == "down_proj" and value.dim() == 3:
            for e, down in enumerate(value):
                out[f"{prefix}.{e}.down_proj.weight"] = down
        else:
            out[key] = value
    return {key: value.to(torch.bfloat16).contiguous() for key, value in out.items()}


def round_weights(model: Any, weights: str) -> None:
    """Replaces each matrix by what our rounding on load makes of it."""
    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() < 2:
                continue
            if "embed_tokens" in key:
                role = "head" if tied else "embedding"
            elif key.startswith("lm_head"):
                role = "head"
            else:
                role = "router" if key.endswith((".mlp.gate.weight", "shared_expert_gate.weight")) else "linear"
            values = parameter.to(torch.float32).numpy()
            stored = Tensor(key, "f32", values.shape, values.reshape(-1).view(np.uint8))
            kind = Forms.of(weights).kind(stored, role)
            parameter.copy_(torch.from_numpy(quants.dequantize(stored if kind == "f32" else quants.round_tensor(stored, kind))).double())


class Sites:
    """Where errors enter: leaves of value 0 that are added to values of the network, and how large each error may be."""

    def __init__(self, rounds_inputs: bool) -> None:
        self.rounds_inputs = rounds_inputs
        self.independent: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.arithmetic: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.gaps: list[torch.Tensor] = []
        """Of router logits: the last chosen expert over the first that was not."""

    def add(self, value: torch.Tensor, half: torch.Tensor, *, arithmetic: bool = False) -> torch.Tensor:
        leaf = torch.zeros_like(value, requires_grad=True)
        (self.arithmetic if arithmetic else self.independent).append((leaf, half.detach()))
        return value + leaf

    def bf16(self, value: torch.Tensor) -> torch.Tensor:
        return self.add(value, torch.exp2(torch.floor(torch.log2(value.detach().abs().clamp_min(1e-30))) - 8))

    def int8(self, value: torch.Tensor) -> torch.Tensor:
        """Groups of 128 of the last axis."""
        if not self.rounds_inputs:
            return value
        width = value.shape[-1]
        padded = torch.nn.functional.pad(value.detach(), (0, -width % 128))
        amax = padded.unflatten(-1, (-1, 128)).abs().amax(-1, keepdim=True)
        half = (amax / 254).expand(*amax.shape[:-1], 128).flatten(-2)[..., :width]
        return self.add(value, half)

    def product(self, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        y = torch.nn.functional.linear(x, w, bias)
        size = torch.nn.functional.linear(x.detach().abs(), w.detach().abs(), None if bias is None else bias.detach().abs())
        return self.add(y, (w.shape[-1] + 64) * U * size, arithmetic=True)


@contextmanager
def watched(model: Any, sites: Sites) -> Iterator[None]:
    """While open, the model's matrices, attention and experts report to `sites`."""
    rounded: dict[int, torch.Tensor] = {}

    def rounded_once(x: torch.Tensor) -> torch.Tensor:
        """Matrices that read one value share its rounding."""
        if id(x) not in rounded:
            rounded[id(x)] = sites.int8(x)
            keep.append(x)
        return rounded[id(x)]

    keep: list[torch.Tensor] = []

    def linear(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        exact = module.weight.shape[0] == 1  # the gate of a shared expert keeps its own kind

        def forward(x: torch.Tensor) -> torch.Tensor:
            return sites.product(x if exact else rounded_once(x), module.weight, module.bias)

        return forward

    def router(module: Any) -> Callable[[torch.Tensor], Any]:
        def forward(x: torch.Tensor) -> Any:
            x = x.reshape(-1, x.shape[-1])
            logits = sites.product(x, module.weight)
            p = torch.softmax(logits, dim=-1)
            top, index = torch.topk(p, module.top_k, dim=-1)
            order = logits.sort(dim=-1, descending=True).values
            sites.gaps.append(order[:, module.top_k - 1] - order[:, module.top_k])
            if module.norm_topk_prob:
                top = top / top.sum(dim=-1, keepdim=True)
            return logits, top, index

        return forward

    def experts(module: Any) -> Callable[..., torch.Tensor]:
        def forward(x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            shared = rounded_once(x)
            rows = []
            for token in range(len(x)):
                total = torch.zeros_like(x[token])
                for slot in range(index.shape[1]):
                    e = int(index[token, slot])
                    gate, up = sites.product(shared[token], module.gate_up_proj[e]).chunk(2, dim=-1)
                    hidden = sites.int8(torch.nn.functional.silu(gate) * up)
                    total = total + weights[token, slot] * sites.product(hidden, module.down_proj[e])
                rows.append(total)
            return torch.stack(rows)

        return forward

    def sparse(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        """One flat view of the input, so that experts and the shared expert see the same value."""

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            x = hidden.reshape(-1, hidden.shape[-1])
            _, weights, index = module.gate(x)
            out = module.experts(x, index, weights)
            if hasattr(module, "shared_expert"):
                out = out + torch.sigmoid(module.shared_expert_gate(x)) * module.shared_expert(x)
            return out.reshape(hidden.shape)

        return forward

    def attention(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, scaling: float, **__: Any
    ) -> tuple[torch.Tensor, None]:
        key, value = sites.bf16(key), sites.bf16(value)
        key, value = (t.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for t in (key, value))
        length = query.shape[2]
        scores = query @ key.transpose(-1, -2) * scaling
        q, k = query.detach(), key.detach()
        angle = 3 * U * length * q.norm(dim=-1)[..., None] * k.norm(dim=-1)[..., None, :]
        scores = sites.add(scores, ((q.shape[-1] + 8) * U * (q.abs() @ k.abs().transpose(-1, -2)) + angle) * scaling, arithmetic=True)
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf)
        return (torch.softmax(scores, dim=-1) @ value).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("golden", attention)
    patched = []
    for module in model.modules():
        kind = type(module).__name__
        make = linear if kind == "Linear" else None
        make = router if kind.endswith("TopKRouter") else experts if kind.endswith("Experts") else sparse if kind.endswith("SparseMoeBlock") else make
        if make is not None:
            module.forward = make(module)
            patched.append(module)
    yield
    for module in patched:
        del module.forward


def output_of(model: Any, ids: np.ndarray, output: str) -> torch.Tensor:
    """[tokens, vocabulary] logits, or [tokens, hidden] states behind the last norm."""
    batch = torch.from_numpy(ids)[None]
    return model(batch, use_cache=False).logits[0] if output == "logits" else model.model(batch, use_cache=False).last_hidden_state[0]


def golden(name: str, weights: str, output: str = "logits") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, logits [tokens, vocabulary] (or "hidden" states [tokens, hidden]) and their bounds."""
    model = random_model(name)
    if weights != "stored":
        round_weights(model, weights)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    ids = np.random.default_rng(100).integers(0, 256, EXPERT_TOKENS if name.endswith("_moe") else TOKENS)
    sites = Sites(rounds_inputs=weights != "stored")
    with watched(model, sites):
        logits = output_of(model, ids, output)
    gaps = torch.cat(sites.gaps) if sites.gaps else logits.new_zeros(0)
    outputs = torch.cat([logits.flatten(), gaps])
    bounds = _bounds(outputs, sites, len(outputs))
    if (gaps <= bounds[logits.numel() :]).any():
        raise SystemExit(f"{name}, {weights}: a router could choose other experts; take another seed")
    with torch.no_grad():
        plain = random_model(name)
        plain.set_attn_implementation("eager")
        if weights != "stored":
            round_weights(plain, weights)
        exact = output_of(plain, ids, output)
    # The watched copy must be the model of transformers, which computes norms and softmax in float32 whatever the type of the weights.
    assert (logits - exact).abs().max() < 1e-5 * exact.abs().max(), name
    return ids.astype(np.int32), exact.numpy(), bounds[: logits.numel()].reshape(logits.shape).numpy()


def _bounds(outputs: torch.Tensor, sites: Sites, count_all: int) -> torch.Tensor:
    leaves = [leaf for leaf, _ in sites.independent + sites.arithmetic]
    count = len(sites.independent)
    factor = math.sqrt(2 * math.log(2 * count_all * len(MODELS) * len(VARIANTS) / FALSE_ALARM))
    parts = []
    for start in range(0, len(outputs), 512):
        chunk = outputs[start : start + 512]
        jacobian = torch.autograd.grad(
            chunk, leaves, torch.eye(len(chunk), dtype=chunk.dtype), retain_graph=True, is_grads_batched=True, allow_unused=True
        )
        squares = torch.zeros(len(chunk), dtype=chunk.dtype)
        absolute = torch.zeros_like(squares)
        for i, (j, (_, half)) in enumerate(zip(jacobian, sites.independent + sites.arithmetic, strict=True)):
            if j is None:
                continue
            terms = (j * half).flatten(1)
            if i < count:
                squares += terms.square().sum(1)
            else:
                absolute += terms.abs().sum(1)
        parts.append(factor * squares.sqrt() + absolute)
    return torch.cat(parts)


def main() -> None:
    torch.set_num_threads(1)
    for name, (make, weights_of, _) in MODELS.items():
        directory = HERE / name
        directory.mkdir(exist_ok=True)
        config = make()
        config.architectures = [type(random_model(name)).__name__]
        config.dtype = "bfloat16"
        config.save_pretrained(directory)
        if weights_of == name:
            save_file(checkpoint_tensors(random_model(name)), directory / "model.safetensors", metadata={"format": "pt"})
        for output in ("logits", "hidden"):
            arrays = {}
            for variant in VARIANTS:
                ids, values, bounds = golden(name, variant, output)
                arrays |= {"ids": ids, f"{variant}_{output}": values.astype(np.float32), f"{variant}_bounds": bounds.astype(np.float32)}
                size = np.abs(values).mean()
                print(f"{name} {variant}: {output} of size {size:.3f}, bounds {bounds.mean():.5f} on average, {bounds.max():.5f} at most", flush=True)
            np.savez_compressed(directory / f"{output}.npz", **arrays)


if __name__ == "__main__":
    main()
