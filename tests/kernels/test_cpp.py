"""The kernels against their scalar twin in C++, on this processor, under sanitizers, and on processors that this one only emulates."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwenbox.kernels.native import isa_missing

pytestmark = pytest.mark.usefixtures("build_folder")

ROOT = Path(__file__).resolve().parents[2]
AARCH64 = [
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    "-DCMAKE_EXE_LINKER_FLAGS=-static",
]


def require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing and os.environ.get("QWENBOX_TEST_REQUIRE") == "1":
        pytest.fail(f"not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def run(*command: str | Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([str(part) for part in command], cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def build(name: str, *options: str, target: str = "test_linear", others: tuple[str, ...] = ()) -> Path:
    folder = ROOT / "build" / name
    run("cmake", "-S", ".", "-B", folder, "-G", "Ninja", "-DQWENBOX_CPP_TESTS=ON", "-DQWENBOX_WERROR=ON", *options)
    run("cmake", "--build", folder, "--target", target, *others, "-j2")
    return folder / "tests" / "cpp" / target


def variants_that_agree(*command: str | Path) -> list[str]:
    output = run(*command)
    counts = re.search(r"^(\d+) passed, 0 failed$", output, re.MULTILINE)
    assert counts and int(counts[1]) > 1000, output
    named = re.search(r"^variants: (.*)$", output, re.MULTILINE)
    assert named
    return named[1].split()


def test_every_variant_of_this_processor_equals_the_scalar_twin() -> None:
    require("c++")
    assert variants_that_agree(build("native"))[-1] == "generic"


def require_avx512() -> None:
    """Tiles are emulated, but the amx variant's vectors are not."""
    if missing := isa_missing("avx512vnni"):
        pytest.skip(f"the amx variant cannot run here, even with emulated tiles: {missing}")


def test_products_by_emulated_tiles_equal_the_scalar_twin() -> None:
    require("c++")
    require_avx512()
    assert variants_that_agree(build("native", target="test_linear_amx"), "amx") == ["amx"]


def test_packed_panels_equal_the_scalar_twin() -> None:
    require("c++")
    assert run(build("native", target="test_pack")).endswith(" passed, 0 failed\n")


@pytest.mark.long
def test_packing_stays_inside_its_memory_and_the_language() -> None:
    require("c++")
    assert run(build("cpp-sanitize", "-DQWENBOX_SANITIZE=ON", target="test_pack")).endswith(" passed, 0 failed\n")


@pytest.mark.long
def test_an_arm_processor_packs_the_same_panels() -> None:
    require("aarch64-linux-gnu-g++", "qemu-aarch64-static")
    program = build("cpp-aarch64", *AARCH64, target="test_pack")
    assert run("qemu-aarch64-static", program).endswith(" passed, 0 failed\n")


@pytest.mark.long
def test_the_kernels_stay_inside_their_memory_and_the_language() -> None:
    require("c++")
    tiles = isa_missing("avx512vnni") is None  # emulated ones: what a real one touches, no sanitizer sees
    program = build("cpp-sanitize", "-DQWENBOX_SANITIZE=ON", target="test_linear_amx" if tiles else "test_linear")
    variants = variants_that_agree(program, "quick")
    assert variants[-1] == "generic"
    assert not tiles or variants[0] == "amx"


@pytest.mark.long
def test_an_x86_without_avx_equals_the_scalar_twin() -> None:
    require("c++", "qemu-x86_64-static")
    assert variants_that_agree("qemu-x86_64-static", "-cpu", "Nehalem", build("native"), "quick") == ["generic"]


@pytest.mark.long
def test_an_arm_processor_equals_the_scalar_twin() -> None:
    require("aarch64-linux-gnu-g++", "qemu-aarch64-static")
    program = build("cpp-aarch64", *AARCH64, others=("qwenbox_native",))
    assert variants_that_agree("qemu-aarch64-static", program, "quick") == ["generic"]
