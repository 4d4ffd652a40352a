"""Makes the folders of tests/weights/data that an independent program quantised, and what that program and transformers say of them.

By hand, each program in an environment of its own:

    pip install torch==2.13.0 gptqmodel==7.6.0;                 GPTQMODEL_CPU_WORKERS=2 python tests/weights/record_quantised.py gptqmodel
    pip install torch==2.13.0 llmcompressor==0.14.0.1;            python tests/weights/record_quantised.py llmcompressor
    pip install torch==2.13.0 transformers==5.23.0 accelerate;  pip install --no-deps --no-build-isolation autoawq==0.2.9
                                                                python tests/weights/record_quantised.py autoawq

A random Qwen3 of one layer is quantised and saved by the program. `witness.json` says by what, and holds for each quantised matrix the SHA-256 of
the weights as the program itself dequantises them, computed in float32 so that nothing is rounded. `logits.npz` holds what transformers makes of
these weights in float64, with the bound that tests/golden/make.py derives. Of AutoAWQ only the packing runs: the package as a whole wants an
older transformers.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "golden"))
import make  # noqa: E402

TOKENS, VOCABULARY = 12, 64
Weights = dict[str, torch.Tensor]


def tiny() -> Any:
    """A model of random bf16 weights whose linear layers read 128 inputs, the last one 256."""
    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    generator = np.random.default_rng(11)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            values = generator.standard_normal(tuple(parameter.shape))
            if key.endswith("norm.weight"):
                values = 1 + 0.2 * values
            elif "embed_tokens" not in key:
                values = values / math.sqrt(parameter.shape[-1])
                values[3], values[5] = np.abs(values[3]), -np.abs(values[5])  # their zeros are the first and the last code
            parameter.copy_(torch.from_numpy(values).to(torch.bfloat16))
    return model


def calibration() -> list[list[int]]:
    return np.random.default_rng(12).integers(4, VOCABULARY, (16, 64)).tolist()


# --- gptqmodel -----------------------------------------------------------------------------------------------------


def with_gptqmodel(out: Path, work: Path) -> None:
    import tokenizers
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    source = work / "source"
    tiny().save_pretrained(source)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1", eos_token="w2").save_pretrained(source)

    def modules(down: int) -> dict[str, dict[str, Any]]:
        """Every kind of matrix in one model; one is left as it is."""
        return {
            ".*q_proj": {"bits": 4, "group_size": 64, "sym": False},
            ".*k_proj": {"bits": 4, "group_size": 32, "sym": True},
            ".*v_proj": {"bits": 8, "group_size": 128, "sym": True},
            ".*gate_proj": {"bits": 8, "group_size": 128, "sym": False},
            ".*up_proj": {"bits": 8, "group_size": 64, "sym": True},
            ".*down_proj": {"bits": 4, "group_size": down, "sym": False},
            "-:.*o_proj": {},
        }

    for name, changes in {
        "gptq_128": {"format": "gptq"},
        "gptq_mixed": {"format": "gptq", "dynamic": modules(256)},
        "gptq_v2_mixed": {"format": "gptq_v2", "dynamic": modules(-1), "act_group_aware": False},
    }.items():
        model = GPTQModel.load(
            str(source), QuantizeConfig(**{"bits": 4, "group_size": 128, "sym": True, "desc_act": False, "offload_to_disk": False} | changes)
        )
        model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in calibration()], batch_size=1)
        model.save(str(work / name))
        stored, found = load_file(work / name / "model.safetensors"), {}
        for key, module in GPTQModel.load(str(work / name), backend=BACKEND.GPTQ_TORCH, device="cpu").model.named_modules():
            if isinstance(module, TorchLinear):
                module.scales = stored[f"{key}.scales"].float()  # loading made them bf16, the model's type
                found[f"{key}.weight"] = module.dequantize_weight().T
        keep(out / name, work / name, found, "gptqmodel")


# --- llm-compressor ------------------------------------------------------------------------------------------------


def with_llmcompressor(out: Path, work: Path) -> None:
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    tiny().save_pretrained(work / "source")

    def linear(which: str, bits: int, group: int | None, symmetric: bool) -> QuantizationScheme:
        form = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
        return QuantizationScheme(targets=[f"re:.*{which}_proj"], weights=QuantizationArgs(num_bits=bits, symmetric=symmetric, **form))

    mixed = {
        "q": linear("q", 4, 64, False),
        "k": linear("k", 4, 32, True),
        "v": linear("v", 8, 128, True),
        "gate": linear("gate", 8, 128, False),
        "up": linear("up", 8, 64, True),
        "down": linear("down", 4, None, False),
    }
    for name, modifier in {
        "compressed_128": QuantizationModifier(targets="Linear", ignore=["lm_head"], scheme="W4A16"),
        "compressed_mixed": QuantizationModifier(config_groups=mixed, ignore=["lm_head", "re:.*o_proj"]),
    }.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(work / "source", dtype="auto")
        oneshot(model=model, recipe=[modifier])
        model.save_pretrained(work / name, save_compressed=True)
        config = json.loads((work / name / "config.json").read_text())["quantization_config"]
        schemes = QuantizationConfig.model_validate(config).config_groups
        stored = load_file(work / name / "model.safetensors")
        found = {}
        for key in [key for key in stored if key.endswith(".weight_packed")]:
            module = key.removesuffix(".weight_packed")
            parts = {part.removeprefix(f"{module}."): tensor for part, tensor in stored.items() if part.startswith(f"{module}.")}
            parts["weight_scale"] = parts["weight_scale"].float()
            scheme = next(s for s in schemes.values() if "Linear" in s.targets or re.match(s.targets[0].removeprefix("re:"), module))
            found[f"{module}.weight"] = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
        keep(out / name, work / name, found, "llmcompressor", "compressed-tensors")


# --- AutoAWQ -------------------------------------------------------------------------------------------------------


def with_autoawq(out: Path, work: Path) -> None:
    folder = Path(importlib.metadata.distribution("autoawq").locate_file("awq"))
    for name in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):
        package = ModuleType(name)  # in place of their __init__, which import everything else
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    linear = importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM
    packing = importlib.import_module("awq.utils.packing_utils")
    for group in (128, 64, 32):
        directory = work / f"awq_{group}"
        model = tiny().half()
        model.save_pretrained(directory)
        tensors = load_file(directory / "model.safetensors")
        found = {}
        for key, layer in model.model.named_modules(prefix="model"):
            if not isinstance(layer, torch.nn.Linear):
                continue
            rows = layer.weight.data.float().unflatten(1, (-1, group))
            low, high = rows.amin(2), rows.amax(2)
            scales = ((high - low).clamp(min=1e-5) / 15).half()
            zeros = (-torch.round(low / scales.float())).clamp(0, 15)
            spread = [part.float().repeat_interleave(group, dim=1) for part in (zeros, scales)]
            layer.weight.data = ((torch.round(layer.weight.data.float() / spread[1]) + spread[0]).clamp(0, 15) - spread[0]) * spread[1]
            packed = linear.from_linear(layer, 4, group, scales=scales.float().T.contiguous(), zeros=zeros.T.contiguous())
            del tensors[f"{key}.weight"]
            tensors |= {f"{key}.{part}": getattr(packed, part).contiguous() for part in ("qweight", "qzeros", "scales")}
            found[f"{key}.weight"] = packing.dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, group).T
            assert torch.equal(found[f"{key}.weight"], layer.weight.data)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((directory / "config.json").read_text())
        # `to_transformers_dict` of awq/models/_config.py
        described = {"quant_method": "awq", "zero_point": True, "group_size": group, "bits": 4, "version": "gemm", "modules_to_not_convert": None}
        (directory / "config.json").write_text(json.dumps(config | {"quantization_config": described}))
        keep(out / directory.name, directory, found, "autoawq")


# --- what is kept --------------------------------------------------------------------------------------------------


def keep(folder: Path, saved: Path, found: Weights, *programs: str) -> None:
    """The saved directory, the digests of its weights as the program dequantises them, and transformers' logits."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copy(saved / file, folder)
    (folder / "config.json").write_text(json.dumps(json.loads((saved / "config.json").read_text()), indent=1) + "\n")
    digests = {key: hashlib.sha256(weight.float().contiguous().numpy().tobytes()).hexdigest() for key, weight in sorted(found.items())}
    versions = {name: importlib.metadata.version(name) for name in (*programs, "torch", "transformers")}
    (folder / "witness.json").write_text(json.dumps({"programs": versions, "weights": digests}, indent=1) + "\n")

    stored = load_file(saved / "model.safetensors")
    config = transformers.AutoConfig.from_pretrained(saved)
    del config.quantization_config
    ids = np.random.default_rng(100).integers(0, VOCABULARY, TOKENS)

    def model(attention: str) -> Any:
        config._attn_implementation = attention
        made = transformers.AutoModelForCausalLM.from_config(config).double().eval()
        with torch.no_grad():
            for key, parameter in made.named_parameters():
                parameter.copy_(found.get(key, stored.get(key)).double())
                parameter.requires_grad_(False)
        return made

    sites = make.Sites(rounds_inputs=True)
    watched = model("golden")
    with make.watched(watched, sites):
        logits = watched(torch.from_numpy(ids)[None], use_cache=False).logits[0]
    bounds = make._bounds(logits.flatten(), sites, logits.numel()).reshape(logits.shape)
    exact = model("eager")(torch.from_numpy(ids)[None], use_cache=False).logits[0]
    assert (logits - exact).abs().max() < 1e-5 * exact.abs().max(), folder.name
    np.savez_compressed(
        folder / "logits.npz", ids=ids.astype(np.int32), logits=exact.numpy().astype(np.float32), bounds=bounds.numpy().astype(np.float32)
    )
    print(f"{folder.name}: {len(found)} matrices, logits of size {exact.abs().mean():.3f}, bounds {bounds.mean():.5f} on average", flush=True)


PROGRAMS: dict[str, Callable[[Path, Path], None]] = {
    "gptqmodel": with_gptqmodel,
    "llmcompressor": with_llmcompressor,
    "autoawq": with_autoawq,
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        PROGRAMS[sys.argv[1]](HERE / "data", Path(work))
