"""The kernels against their scalar twin in C++, on this processor, and on one without AVX that it emulates."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.kernels.programs import AMD64, TILES, TRAPPED, build, require, run, variants_that_agree


def test_every_variant_of_this_processor_equals_the_scalar_twin() -> None:
    require("c++")
    variants = variants_that_agree(build("native"))
    assert variants[-1] == "generic"
    assert (variants[0] == "amx") == TILES


@pytest.mark.skipif(not TILES, reason="this processor lacks AVX-512, whose vectors the amx variant needs beside its tiles")
def test_each_tile_instruction_does_what_the_manual_says() -> None:
    """Where the processor has them, this says whether the trap does what the processor does."""
    require("c++")
    assert run(build("native", target="test_amx_trap")).endswith(" passed, 0 failed\n")


RULES = {
    "no configuration": "tilezero %tmm0 breaks a rule: a tile is configured",
    "palette": "palette 0 or 1",
    "start row": "from row 0 on",
    "reserved": "reserved bytes",
    "rows": "at most 16 rows of 64 bytes",
    "bytes": "at most 16 rows of 64 bytes",
    "rows without bytes": "at most 16 rows of 64 bytes",
    "nine tiles": "eight tiles",
    "depth": "the shapes of a product fit",
    "heights": "the shapes of a product fit",
    "widths": "the shapes of a product fit",
    "parts of words": "whole words",
    "no tile": "a tile is configured",
    "twice": "tdpbssd %tmm1,%tmm0,%tmm0 breaks a rule: a product has three tiles",
}


@pytest.mark.skipif(not TRAPPED, reason="this processor has tiles, or lacks AVX-512")
def test_what_would_be_a_fault_of_tiles_ends_the_program_and_says_why() -> None:
    require("c++")
    program = build("native", target="test_amx_trap")
    for rule, said in RULES.items():
        broken = subprocess.run([str(program), "fault", rule], capture_output=True, text=True)
        assert broken.returncode == -signal.SIGABRT, rule
        assert said in broken.stderr
    assert subprocess.run([str(program), "fault", "no instruction"], capture_output=True).returncode == -signal.SIGILL


MEMORY = ("(%rax)", "0x40(%rsp)", "0(%rbp)", "-0x80(%r12,%r14,8)", "0x12345678(%r13,%r12,1)", "(%r8,%r15,2)", "0x10(,%rdx,4)", "-0x1000(%rbx,%rbp,1)")


@pytest.mark.skipif(not AMD64, reason="this processor is not x86")
def test_the_trap_reads_every_tile_instruction_that_the_compiler_wrote(tmp_path: Path) -> None:
    require("c++", "objdump")
    program = build("native", target="test_amx_trap", others=("qwenbox_native_trapped",))
    products = [f"{name} %tmm{a},%tmm{a ^ 1},%tmm{a ^ 3}" for name in ("tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud", "tdpbf16ps") for a in range(8)]
    moves = [f"{name} {at},%tmm{i}" for name in ("tileloadd", "tileloaddt1") for i, at in enumerate(MEMORY)]
    stores = [f"tilestored %tmm{i},{at}" for i, at in enumerate(MEMORY)]
    others = ["tilerelease", *(f"tilezero %tmm{i}" for i in range(8))]
    configurations = [f"{name} {at}" for name in ("ldtilecfg", "sttilecfg") for at in (*MEMORY, "0x123(%rip)")]
    source, forms = tmp_path / "forms.s", tmp_path / "forms.o"
    source.write_text("\n".join([*products, *moves, *stores, *others, *configurations, ""]))
    run("c++", "-c", source, "-o", forms)
    written = tile_instructions(forms)
    assert len(written) == len({*products, *moves, *stores, *others, *configurations})
    compiled = tile_instructions(program.parent / "libqwenbox_native_trapped.so")
    assert {text.split()[0] for text in compiled.values()} >= {"ldtilecfg", "tilezero", "tileloadd", "tilestored", "tdpbssd", "tdpbsud", "tdpbf16ps"}
    expected = written | compiled
    read = subprocess.run(
        [str(program), "decode"], input="\n".join([*expected, "90", "c4 e2 fb 4b 1c 20"]), capture_output=True, text=True, check=True
    )
    assert read.stdout.splitlines() == [*expected.values(), "unknown", "unknown"]


def tile_instructions(program: Path) -> dict[str, str]:
    """Bytes of each tile instruction in the machine code, and how objdump writes it."""
    lines = (line.split("\t") for line in run("objdump", "-dw", program).splitlines())
    found = ((words[1].strip(), words[2].split("#")[0].strip()) for words in lines if len(words) == 3)
    return {code: text for code, text in found if "tmm" in text or "tile" in text.split()[0]}


def test_packed_panels_equal_the_scalar_twin() -> None:
    require("c++")
    assert run(build("native", target="test_pack")).endswith(" passed, 0 failed\n")


@pytest.mark.long
def test_an_x86_without_avx_equals_the_scalar_twin() -> None:
    require("c++", "qemu-x86_64-static")
    assert variants_that_agree("qemu-x86_64-static", "-cpu", "Nehalem", build("native"), "quick") == ["generic"]
