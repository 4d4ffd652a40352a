"""Where only the largest logit is wanted, a large head is not read whole, and what is said has the bits of the whole product."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from qwenbox.errors import EngineError
from qwenbox.kernels import native, quants
from qwenbox.kernels.native import NativeProgram
from qwenbox.kernels.program import Ops
from qwenbox.types import Batch, FloatArray, Tensor
from tests.kernels.networks import compiled, matrix, rows_batch, tensor

ROWS, WIDTH = 16_400, 320
"""The last panel of 64 rows and the last group of 128 inputs are partly padding."""


@pytest.fixture(scope="module")
def head() -> FloatArray:
    rows = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)
    rows[17] = 0
    rows[:, 128:256] *= 0.01
    return rows


def inputs(head: FloatArray) -> FloatArray:
    """Like a late row of the head, somewhat less like an early one, some inputs far larger than others."""
    rng = np.random.default_rng(2)
    x = head[[-1, 16_383, 16_300, 16_200, 16_100, 16_399]] + 0.8 * head[[5, 700, 5999, 64, 63, 0]]
    x += rng.standard_normal(x.shape) / 2
    x[2, 40:44] *= 20
    x[3, 128:] *= 100
    return x


@dataclass
class Head:
    """Logits of twice the rows of `x` that the ids name: twice 3e38 is infinite."""

    x: FloatArray
    head: Tensor

    def build(self, ops: Ops) -> None:
        x = ops.embed(ops.weight(tensor(self.x)))
        ops.output(ops.linear(ops.logits_rows(ops.add(x, x)), ops.weight(self.head)))


def opened(head: FloatArray, x: FloatArray, isa: str | None = None, threads: int = 2) -> NativeProgram:
    return compiled(Head(x, Tensor("head", "int8", head.shape, quants.round_int8(head))), isa=isa, threads=threads, tokens=len(x))


def one(row: int, largest: int = 0) -> Batch:
    """One row of the inputs."""
    return Batch(np.array([row], np.int32), rows_batch(1).spans, np.zeros(1, np.int32), largest)


@pytest.mark.parametrize("isa", native.isa_available())
@pytest.mark.parametrize("threads", [1, 3])
def test_the_largest_logit_is_that_of_the_whole_head_and_most_of_the_head_is_not_read(head: FloatArray, isa: str, threads: int) -> None:
    program = opened(head, inputs(head), isa, threads)
    for row in range(6):
        whole = program.run(one(row))
        for limit in (ROWS, 16_000, 6000):
            before = program.spared_bytes
            some = program.run(one(row, limit))
            assert program.spared_bytes > before + ROWS * WIDTH // 4
            assert some[0, :limit].argmax() == whole[0, :limit].argmax()
            assert some[0, :limit].max() == whole[0, :limit].max()
            assert (np.isneginf(some) | (some == whole)).all()
    program.close()


def test_equal_largest_logits_are_all_there(head: FloatArray) -> None:
    twins = head.copy()
    twins[[3, 8000, 16_399]] = twins[5]
    program = opened(twins, twins[5:6])
    some = program.run(one(0, ROWS))
    assert np.flatnonzero(some[0] == some.max()).tolist() == [3, 5, 8000, 16_399]
    program.close()


def test_the_bound_holds_where_only_its_last_bits_decide() -> None:
    """All rows are so near to one another that the order is made by rounding: nothing may be left out that could be the largest."""
    rng = np.random.default_rng(4)
    near = np.tile(rng.standard_normal(WIDTH).astype(np.float32), (ROWS, 1))
    near += rng.standard_normal((ROWS, 1)).astype(np.float32) * 1e-7
    near[::64] *= np.float32(1.001)  # few enough for the sketch to be worth it where it can tell them from the others
    x = near[:1] + rng.standard_normal((8, WIDTH)).astype(np.float32)
    program = opened(near, x)
    for row in range(len(x)):
        whole, some = program.run(one(row)), program.run(one(row, ROWS))
        np.testing.assert_array_equal(np.flatnonzero(some[0] == some.max()), np.flatnonzero(whole[0] == whole.max()))
    program.close()


def test_a_head_without_a_clear_largest_row_is_multiplied_whole_and_soon_asked_less_often(head: FloatArray) -> None:
    x = np.random.default_rng(3).standard_normal((1, WIDTH)).astype(np.float32) * np.float32(1e-3)
    program = opened(np.abs(head) + 1, x)
    whole, spent = program.run(one(0)), []
    for _ in range(40):
        np.testing.assert_array_equal(program.run(one(0, ROWS)), whole)
        spent.append(-program.spared_bytes)
    looks = np.flatnonzero(np.diff([0, *spent])).tolist()
    assert looks == [0, 1, 4, 9, 18, 35], "twice at once, then after 2, 4, 8 and 16 others"
    program.close()


def test_inputs_that_are_not_numbers_or_too_large_or_zero_are_as_ever(head: FloatArray) -> None:
    x = inputs(head)[:4]
    x[0, 3], x[1, 3], x[3] = -3e38, 3e38, 0
    x[2] = 1e30
    program = opened(head, x)
    for row in range(4):
        np.testing.assert_array_equal(program.run(one(row, ROWS)), program.run(one(row)))
    program.close()


def test_several_rows_read_the_whole_head(head: FloatArray) -> None:
    program = opened(head, inputs(head))
    batch = rows_batch(2)
    np.testing.assert_array_equal(program.run(Batch(batch.ids, batch.spans, batch.logits_rows, ROWS)), program.run(batch))
    assert program.spared_bytes == 0
    program.close()


def test_more_logits_than_there_are_cannot_be_looked_at(head: FloatArray) -> None:
    program = opened(head, inputs(head))
    for largest in (-1, ROWS + 1):
        with pytest.raises(EngineError, match=f"first {largest} logits"):
            program.run(one(0, largest))
    program.close()


def test_scales_of_either_sign_and_none_at_all_keep_the_bound() -> None:
    rng = np.random.default_rng(6)
    head = matrix(rng, "int8", ROWS, WIDTH)
    blocks = head.data.reshape(-1, 130)
    blocks[::7, :2] = 0
    blocks[3::1001, :2] = np.array([300], "<f2").view(np.uint8)
    program = compiled(Head(rng.standard_normal((8, WIDTH)).astype(np.float32), head), tokens=8)
    for row in range(8):
        whole, some = program.run(one(row)), program.run(one(row, ROWS))
        assert (some.argmax(), some.max()) == (whole.argmax(), whole.max())
    assert program.spared_bytes > 0
    program.close()
