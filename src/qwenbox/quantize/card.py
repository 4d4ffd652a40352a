"""The model card of a quantised checkpoint, from what `quantize.json` says."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from typing import Any

METHODS = {
    "rtn": "rounded to the nearest step, without calibration",
    "awq": "AWQ: scales of the inputs and ranges of the groups searched on the calibration, then rounded to the nearest step",
    "gptq": "GPTQ: columns rounded one after the other, each making good what those before it lost on the calibration",
    "awq+gptq": "AWQ's scales and ranges, then GPTQ's rounding",
}


def card(facts: Mapping[str, Any]) -> str:
    """Markdown. `facts` as `quantize.quantize` returns them; with "quality", the numbers of a divergence, where it was measured."""
    calibration = facts["calibration"]
    steps = "a scale and a zero" if facts["bits"] == 4 else "a scale"
    lines = [
        "---",
        f"base_model: {json.dumps(facts['model'], ensure_ascii=False)}",
        "library_name: transformers",
        "---",
        "",
        f"# {facts['model']}, {facts['bits']} bits",
        "",
        f"Made by `qwenbox quantize --method {facts['method']} --bits {facts['bits']} --group {facts['group']}`.",
        "",
        "| | |",
        "|---|---|",
        f"| Method | {METHODS[facts['method']]} |",
        f"| Weights | {facts['bits']} bits, {steps} each {facts['group']} inputs; embedding, head, norms, biases and routers fp16 |",
        f"| Size | {facts['bytes']:,} bytes, of {facts['source_bytes']:,} |",
    ]
    if calibration is None:
        lines.append("| Calibration | none |")
    else:
        lines.append(f"| Calibration | {calibration['source']}: {calibration['tokens']:,} tokens in blocks of {calibration['length']} |")
        lines.append(f"| SHA-256 of the calibration's tokens | `{calibration['sha256']}` |")
    lines.append(f"| SHA-256 of the original's configuration, shapes and the ends of its tensors | `{facts['model_sha256']}` |")
    if "quality" in facts:
        quality = facts["quality"]
        lines.append(f"| Quality | on {quality['tokens']:,.0f} tokens of qwenbox's own text that the calibration did not see |")
        interval = f" [{quality['kl_mean_low']:.4f}, {quality['kl_mean_high']:.4f}]" if "kl_mean_low" in quality else ""
        lines.append(f"| KL to the original, nats a token | {quality['kl_mean']:.4f}{interval} |")
        lines.append(f"| The same likeliest token | {quality['top1_agreement']:.1%} |")
        if {"perplexity", "reference_perplexity"} <= quality.keys():  # either may be beyond all numbers
            lines.append(f"| Perplexity, of the original | {quality['perplexity']:.3f}, {quality['reference_perplexity']:.3f} |")
    if facts["errors"]:
        lines += ["", *_errors(facts["errors"])]
    return "\n".join([*lines, "", "`quantize.json` has these figures for programs, and the SHA-256 of every file of weights.", ""])


def _errors(errors: Mapping[str, float]) -> list[str]:
    """Of each kind of matrix, over the layers."""
    kinds: dict[str, list[tuple[float, str]]] = {}
    for module, error in errors.items():
        kinds.setdefault(module.rpartition(".")[2], []).append((error, module))
    lines = [
        "Mean squared error of each matrix's outputs on the calibration, as a share of their mean square:",
        "",
        "| Matrix | Median | Largest | Where |",
    ]
    lines.append("|---|---|---|---|")
    for kind, values in kinds.items():
        worst, where = max(values)
        lines.append(f"| {kind} | {statistics.median(error for error, _ in values):.2e} | {worst:.2e} | {where} |")
    return lines
