"""The kernels against their scalar twin in C++, on an ARM processor that this one emulates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.programs import build, require, run, variants_that_agree

pytestmark = pytest.mark.long

OPTIONS = [
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    "-DCMAKE_EXE_LINKER_FLAGS=-static",
]


def built(target: str, *others: str) -> Path:
    require("aarch64-linux-gnu-g++", "qemu-aarch64-static")
    return build("cpp-aarch64", *OPTIONS, target=target, others=others)


def test_an_arm_processor_packs_the_same_panels() -> None:
    assert run("qemu-aarch64-static", built("test_pack")).endswith(" passed, 0 failed\n")


def test_an_arm_processor_equals_the_scalar_twin() -> None:
    assert variants_that_agree("qemu-aarch64-static", built("test_linear", "qwenbox_native"), "quick") == ["generic"]
