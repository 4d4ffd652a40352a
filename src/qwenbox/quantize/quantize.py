"""A model into a quantised checkpoint, layer by layer: what runs between reading the source and writing the card.

The result depends on the settings, the model and the calibration only.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qwenbox.errors import ModelFormatError, UsageError
from qwenbox.kernels.quants import dequantize
from qwenbox.types import AnyArray, FloatArray, Tensor
from qwenbox.weights.files import release, write_whole
from qwenbox.weights.safetensors import ArrayParts

from .calibration import Calibration
from .card import card
from .form import BITS, description, outputs_of_word, parts, parts_bytes
from .grid import GROUPS, Grid
from .layer import FloatLayer, float_layer
from .memory import give_back_large_blocks
from .method import METHODS, Result, quantize_layer, round_layer
from .parallel import by_rows, one_thread_each
from .source import Source, embedded, pieces
from .target import STATE, Target

FACTS = "quantize.json"
VERSION = 4
"""Of the algorithms: a directory that another version began is not finished by this one."""


class Progress(NamedTuple):
    """Finished layers, seconds that the last of them took and that the others will take; None while nobody knows."""

    done: int
    total: int
    seconds: float | None
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class Options:
    method: str
    bits: int = 4
    group: int = 128

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"--method {self.method!r} is unknown; choose one of {', '.join(METHODS)}", param="method")
        if self.bits not in BITS:
            raise UsageError(f"--bits {self.bits} is not possible; {' and '.join(map(str, BITS))} are", param="bits")
        if self.bits == 8 and METHODS[self.method].scales:
            raise UsageError(
                f"--method {self.method} is for 4 bits: with 8 there is so little to gain that its search makes weights worse; use rtn or gptq",
                param="method",
            )
        if self.group not in GROUPS:
            raise UsageError(f"--group {self.group} is not possible; choose one of {', '.join(map(str, GROUPS))}", param="group")

    @property
    def calibrated(self) -> bool:
        return METHODS[self.method].calibrated


def quantize(
    source: Source, out: Path, options: Options, calibration: Calibration | None, progress: Callable[[Progress], None] = lambda state: None
) -> Mapping[str, Any]:
    """Writes the directory, or finishes it, and says what it wrote: the contents of `FACTS`.

    `calibration` is None for a method that needs none. Raises UsageError, ModelFormatError; after those of writing the directory can be finished
    by another call.
    """
    config, grid = source.config, Grid(options.bits, options.group)
    check_shapes(source, grid)
    rotation = _rotation(source, calibration)
    give_back_large_blocks()
    with one_thread_each(), closing(Target(out, _settings(source, options, calibration), config.num_layers + 1)) as target:
        target.check_room(needed_bytes(source, options, calibration))
        progress(Progress(max(0, target.done - 1), config.num_layers, None, None))
        x = target.activations()
        if target.done == 0:
            x = None if calibration is None else embedded(source.network.embedding, calibration.ids)
            target.finish_shard(dict(_ends(source)), None, x)
        first, began, before = target.done - 1, time.monotonic(), time.monotonic()
        for index in range(first, config.num_layers):
            arrays, report = _layer(source, index, x, rotation, options, grid)
            last = index == config.num_layers - 1
            target.finish_shard(arrays, report, None if last else x)
            del arrays  # they are large, and the next layer begins
            now = time.monotonic()
            done, each = index + 1, (now - began) / (index + 1 - first)
            progress(Progress(done, config.num_layers, now - before, each * (config.num_layers - done)))
            before = now
        facts = _facts(source, options, calibration, target)
        with target.writing():
            target.finish(_documents(source, options, facts))
    return facts


def _settings(source: Source, options: Options, calibration: Calibration | None) -> dict[str, Any]:
    """All that the result depends on."""
    return {
        "version": VERSION,
        "model": source.digest,
        "method": options.method,
        "bits": options.bits,
        "group": options.group,
        "calibration": None if calibration is None else calibration.digest,
    }


def finished(source: Source, out: Path, options: Options, calibration: Calibration | None) -> Mapping[str, Any] | None:
    """What `quantize` said of a directory that it has finished with the same settings; None where it has not."""
    try:
        facts = json.loads((out / FACTS).read_bytes())
        made = {
            "version": facts["version"],
            "model": facts["model_sha256"],
            "method": facts["method"],
            "bits": facts["bits"],
            "group": facts["group"],
            "calibration": facts["calibration"] and facts["calibration"]["sha256"],
        }
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return facts if made == _settings(source, options, calibration) and not (out / STATE / "state.json").exists() else None


def written_digests(out: Path) -> dict[str, str]:
    """SHA-256 of the files of weights by name, as they were written; nothing where no `quantize` wrote them."""
    try:
        written = json.loads((out / FACTS).read_bytes())["sha256"]
        return {str(name): str(digest) for name, digest in written.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def add_quality(out: Path, facts: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
    """Puts what `evaluate.divergence` says of a finished directory into its card and its facts."""
    facts = {**facts, "quality": {name: float(f"{number:.4g}") for name, number in numbers.items() if math.isfinite(number)}}
    write_whole(out / "README.md", card(facts).encode())
    write_whole(out / FACTS, _facts_document(facts).encode())


def _facts_document(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, ensure_ascii=False, indent=1) + "\n"


def _layer(
    source: Source, index: int, x: FloatArray | None, rotation: tuple[FloatArray, FloatArray] | None, options: Options, grid: Grid
) -> tuple[dict[str, AnyArray], dict[str, Any]]:
    """What is written and reported of a layer; x becomes what the next one gets."""
    layer = float_layer(source.config, source.network.layers[index], index)
    _check_finite(layer, index)
    if x is None or rotation is None:
        result = round_layer(layer, grid)
    else:
        result = quantize_layer(layer, x, rotation, METHODS[options.method], grid)
    return _arrays(layer, result, index, options.bits), _layer_report(result)


def needed_bytes(source: Source, options: Options, calibration: Calibration | None) -> int:
    """On the disk: the checkpoint, and twice what goes from one layer to the next."""
    weights = 0
    for part in source.network.parts():
        shape = part.tensor.shape
        weights += parts_bytes(shape, options.bits, options.group) if part.role == "linear" else 2 * int(np.prod(shape))
    return weights + (0 if calibration is None else 2 * calibration.ids.size * source.config.hidden_size * 4)


def check_shapes(source: Source, grid: Grid) -> None:
    """Raises UsageError where a matrix cannot be cut into groups."""
    for part in source.network.parts():
        if part.role == "linear":
            rows, columns = part.tensor.shape
            together = outputs_of_word(grid.bits)
            if columns % grid.group or rows % together:
                fitting = [str(group) for group in GROUPS if columns % group == 0 and rows % together == 0]
                way = f"--group {' or '.join(fitting)} does" if fitting else "such a model is not written"
                raise UsageError(
                    f"{part.tensor.name} has {rows} outputs of {columns} inputs, which words of {together} outputs and groups of {grid.group} "
                    f"do not divide; {way}",
                    param="group",
                )


def _rotation(source: Source, calibration: Calibration | None) -> tuple[FloatArray, FloatArray] | None:
    if calibration is None:
        return None
    length = calibration.ids.shape[1]
    if length > source.network.positions:
        raise UsageError(
            f"the model has {source.network.positions} positions, blocks of the calibration have {length} tokens: make them shorter",
            param="calibration",
        )
    cos, sin = source.network.rope
    return cos[:length], sin[:length]


def _check_finite(layer: FloatLayer, index: int) -> None:
    vectors: dict[str, FloatArray | None] = {"input_layernorm": layer.attention_norm, "post_attention_layernorm": layer.feed_forward_norm}
    vectors |= {"q_norm": layer.query_norm, "k_norm": layer.key_norm, **{f"{linear.module}.bias": linear.bias for linear in layer.linears}}
    for name, values in vectors.items():
        if values is not None and not np.isfinite(values).all():
            raise ModelFormatError(f"{name} of layer {index} holds NaN or infinity and cannot be quantised")
    for linear in (*layer.linears, *layer.routers):
        weight = linear.weight
        if not all(by_rows(lambda rows, weight=weight: np.isfinite(weight[rows]).all(), weight.shape)):  # type: ignore[misc]
            raise ModelFormatError(f"{linear.module} of layer {index} holds NaN or infinity and cannot be quantised")


# --- what is written -----------------------------------------------------------------------------------------------


def _ends(source: Source) -> Iterator[tuple[str, AnyArray | ArrayParts]]:
    """Embedding, last norm and head, which stay in 16 bits."""
    network = source.network
    yield "model.embed_tokens.weight", _halves(network.embedding)
    yield "model.norm.weight", _half(dequantize(network.final_norm), "model.norm.weight")
    if network.head is not None:
        yield "lm_head.weight", _halves(network.head)


def _halves(table: Tensor) -> ArrayParts:
    def halves() -> Iterator[AnyArray]:
        for piece in pieces(table):
            yield _half(piece, table.name)
            release(table.data)

    return ArrayParts("F16", table.shape, halves())


def _half(values: FloatArray, name: str) -> AnyArray:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise ModelFormatError(f"{name} holds numbers that fp16, in which they are written, cannot hold")
    return half


def _arrays(layer: FloatLayer, result: Result, index: int, bits: int) -> dict[str, AnyArray]:
    prefix = f"model.layers.{index}"
    arrays: dict[str, AnyArray] = {}

    def vector(name: str, values: FloatArray | None) -> None:
        if values is not None:
            arrays[f"{prefix}.{name}"] = _half(values, f"{prefix}.{name}")

    vector("input_layernorm.weight", layer.attention_norm)
    vector("post_attention_layernorm.weight", layer.feed_forward_norm)
    vector("self_attn.q_norm.weight", layer.query_norm)
    vector("self_attn.k_norm.weight", layer.key_norm)
    for linear in layer.linears:
        arrays |= {f"{linear.module}.{part}": array for part, array in parts(result.rounded[linear.module], bits).items()}
        if linear.bias is not None:
            arrays[f"{linear.module}.bias"] = _half(linear.bias, f"{linear.module}.bias")
    for router in layer.routers:
        arrays[f"{router.module}.weight"] = _half(router.weight, f"{router.module}.weight")
    return arrays


def _layer_report(result: Result) -> dict[str, Any]:
    return {"errors": {module: float(f"{error:.4g}") for module, error in result.errors.items()}}


def _facts(source: Source, options: Options, calibration: Calibration | None, target: Target) -> dict[str, Any]:
    reports = [report for report in target.reports if report is not None]
    return {
        "version": VERSION,
        "model": source.name,
        "model_sha256": source.digest,
        "method": options.method,
        "bits": options.bits,
        "group": options.group,
        "calibration": None
        if calibration is None
        else {"source": calibration.source, "sha256": calibration.digest, "tokens": int(calibration.ids.size), "length": calibration.ids.shape[1]},
        "source_bytes": source.num_bytes,
        "bytes": target.num_bytes,
        "sha256": target.digests,
        "errors": {module: error for report in reports for module, error in report["errors"].items()},
    }


def _documents(source: Source, options: Options, facts: Mapping[str, Any]) -> dict[str, str | Path]:
    documents = dict(source.documents)
    config = json.loads(str(documents["config.json"]))
    config["torch_dtype"] = "float16"
    if "dtype" in config:
        del config["torch_dtype"]
        config["dtype"] = "float16"
    config["quantization_config"] = description(options.bits, options.group, source.config)
    documents["config.json"] = json.dumps(config, ensure_ascii=False, indent=1) + "\n"
    documents[FACTS] = _facts_document(facts)
    documents["README.md"] = card(facts)
    return documents
