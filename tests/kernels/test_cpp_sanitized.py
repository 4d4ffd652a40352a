"""The kernels against their scalar twin in C++, under sanitizers."""

from __future__ import annotations

import pytest

from tests.kernels.programs import TILES, build, require, run, variants_that_agree

pytestmark = pytest.mark.long


def test_packing_stays_inside_its_memory_and_the_language() -> None:
    require("c++")
    assert run(build("cpp-sanitize", "-DQWENBOX_SANITIZE=ON", target="test_pack")).endswith(" passed, 0 failed\n")


def test_the_kernels_stay_inside_their_memory_and_the_language() -> None:
    require("c++")
    variants = variants_that_agree(build("cpp-sanitize", "-DQWENBOX_SANITIZE=ON"), "quick")
    assert variants[-1] == "generic"
    assert (variants[0] == "amx") == TILES  # trapped ones: what a real one touches, no sanitizer sees
