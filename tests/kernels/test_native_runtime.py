"""The runtime as a guest in a process: bounds, interruptions, threads, forks and signals."""

from __future__ import annotations

import functools
import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwenbox.errors import EngineError, UsageError
from qwenbox.kernels import native
from qwenbox.kernels.program import CancelFlag, Interrupted, Ops, Value
from qwenbox.kernels.reference import ReferenceRunner
from qwenbox.types import Batch, Span
from tests.engine.fakes import eventually
from tests.kernels.networks import Steps, Tiny, assert_equal, compiled, matrix, rows_batch, tensor

PAGES = np.array([0, 1], np.int32)
GOOD = Batch(np.arange(40, dtype=np.int32), [Span(0, 40, 0, PAGES)], np.array([39], np.int32))


def with_path() -> dict[str, str]:
    """The environment of a process that finds what this one imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def in_a_new_process(code: str, *, timeout: float = 600, ended: Sequence[int] = (0,)) -> str:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=timeout, check=False, env=with_path()
    )
    assert result.returncode in ended, result.stderr
    return result.stdout


def test_an_unknown_instruction_set_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=native.isa_best()):
        native.Native(isa="sse9")


def test_threads_must_be_positive() -> None:
    with pytest.raises(UsageError, match="threads"):
        native.Native(threads=0)


def test_a_missing_library_names_the_command_that_builds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_LIBRARY", "libqwenbox_missing.so")
    with pytest.raises(UsageError, match="make native"):
        native.library.__wrapped__()


def test_a_library_of_older_sources_names_what_it_lacks_and_the_command_that_builds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    older = tmp_path / native._LIBRARY
    source = 'extern "C" const char* qw_error() { return ""; }'
    subprocess.run(["c++", "-shared", "-fPIC", "-x", "c++", "-o", older, "-"], input=source, text=True, check=True)
    monkeypatch.setattr("qwenbox.kernels.__path__", [str(tmp_path)])
    with pytest.raises(UsageError, match=rf"^{older} has no qw_isa_available: .*make native"):
        native.library.__wrapped__()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.array([0] * 39 + [90], np.int32)}, "token id 90 in row 39"),
        ({"ids": np.array([0] * 39 + [-1], np.int32)}, "token id -1"),
        ({"logits_rows": np.array([40], np.int32)}, "row 40"),
        ({"logits_rows": np.array([-1], np.int32)}, "row -1"),
        ({"logits_rows": np.zeros(65, np.int32)}, "65 logit rows"),
        ({"ids": np.zeros(65, np.int32)}, "65 tokens"),
        ({"ids": np.zeros(0, np.int32), "spans": []}, "0 tokens"),
        ({"spans": []}, "spans hold 0 rows"),
        ({"spans": [Span(0, 39, 0, PAGES)]}, "spans hold 39 rows"),
        ({"spans": [Span(0, 41, 0, PAGES)]}, "spans hold 41 rows"),
        ({"spans": [Span(1, 39, 0, PAGES)]}, "starts at row 1"),
        ({"spans": [Span(0, 20, 0, PAGES), Span(10, 20, 0, PAGES)]}, "starts at row 10"),
        ({"spans": [Span(0, 40, 0, PAGES[:1])]}, "1 pages for 40 positions"),
        ({"spans": [Span(0, 40, 25, PAGES)]}, "2 pages for 65 positions"),
        ({"spans": [Span(0, 40, 0, np.array([0, 64], np.int32))]}, "page 64 of 64"),
        ({"spans": [Span(0, 40, 0, np.array([-1, 0], np.int32))]}, "page -1"),
        ({"spans": [Span(0, 40, -1, PAGES)]}, "position"),
        ({"spans": [Span(0, 40, 2020, np.zeros(70, np.int32))]}, "position 2060, but there are 2048"),
        ({"spans": [Span(0, 40, 2**31 - 10, PAGES)]}, "position 2147483678"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_the_program_goes_on(change: dict[str, object], message: str) -> None:
    program = compiled(Tiny())
    want = program.run(GOOD)
    with pytest.raises(EngineError, match=message):
        program.run(replace(GOOD, **change))  # type: ignore[arg-type]
    assert_equal(program.run(GOOD), want)


def test_a_batch_without_wanted_rows_only_fills_the_pages() -> None:
    program = compiled(Tiny())
    want = program.run(GOOD)
    fresh = compiled(Tiny())
    assert fresh.run(replace(GOOD, ids=GOOD.ids[:39], spans=[Span(0, 39, 0, PAGES)], logits_rows=np.zeros(0, np.int32))).shape == (0, 90)
    assert_equal(fresh.run(Batch(GOOD.ids[39:], [Span(0, 1, 39, PAGES)], np.array([0], np.int32))), want)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda ops, x: ops.linear(x, ops.weight(matrix(np.random.default_rng(0), "f32", 8, 31))), "linear: the widths"),
        (lambda ops, x: ops.linear(x, ops.weight(matrix(np.random.default_rng(0), "f32", 8, 32)), ops.vector(tensor(np.ones(7)))), "bias"),
        (lambda ops, x: ops.rms_norm(x, ops.vector(tensor(np.ones(5))), 1e-6), "rms_norm"),
        (lambda ops, x: ops.rope(x, ops.rope_table(np.ones((4, 3)), np.ones((4, 3))), 8), "rope"),
        (lambda ops, x: ops.attention(x, x, x, layer=0, heads=4, kv_heads=4, head_dim=8), "attention"),
        (lambda ops, x: ops.attention(x, x, x, layer=0, heads=2, kv_heads=1, head_dim=16), "attention"),
        (lambda ops, x: ops.add(x, ops.linear(x, ops.weight(matrix(np.random.default_rng(0), "f32", 8, 32)))), "widths differ"),
    ],
)
def test_operations_that_do_not_fit_together_are_refused(body: object, message: str) -> None:
    table = tensor(np.ones((4, 32)))
    with pytest.raises(EngineError, match=message):
        compiled(Steps(table, body))  # type: ignore[arg-type]


def test_a_closed_program_or_runtime_says_so() -> None:
    program = compiled(Tiny())
    program.close()
    program.close()
    with pytest.raises(EngineError, match="closed"):
        program.run(GOOD)
    runtime = native.Native(threads=1)
    runtime.close()
    with pytest.raises(EngineError, match="closed"):
        runtime.vector(tensor(np.ones(3)))


def test_a_tensor_is_packed_once() -> None:
    runtime = native.Native(threads=1)
    weight = matrix(np.random.default_rng(0), "q8_0", 640, 640)
    first = runtime.weight(weight)
    size = runtime.weights_bytes
    assert runtime.weight(weight) == first
    assert runtime.weights_bytes == size
    other = runtime.weight(replace(weight, data=weight.data.copy()))
    assert other != first
    assert runtime.weights_bytes == 2 * size


@pytest.mark.parametrize("num_tokens", [1, 9, 16, 31])
def test_tokens_copied_from_a_page_are_as_good_as_run_and_the_others_leave_no_trace(num_tokens: int) -> None:
    common, rng = 32 + num_tokens, np.random.default_rng(2)
    ids = rng.integers(0, 90, 110).astype(np.int32)
    first = Batch(ids[:64], [Span(0, 64, 0, np.array([3, 4], np.int32))], np.array([63], np.int32))
    own = ids[64 : 64 + 30]
    last = np.array([29], np.int32)
    apart = Batch(own, [Span(0, 30, common, np.array([3, 7, 1], np.int32))], last)
    network = Tiny()
    program, runner = compiled(network), ReferenceRunner(network)
    for one in (program, runner):
        one.run(first)
        one.copy_page(4, 7, num_tokens)
    got = program.run(apart)
    assert_equal(got, runner.run(apart))
    fresh = compiled(network)
    fresh.run(Batch(ids[:common], [Span(0, common, 0, np.array([0, 1], np.int32))], np.zeros(0, np.int32)))
    assert_equal(got, fresh.run(Batch(own, [Span(0, 30, common, np.arange(3, dtype=np.int32))], last)))


@pytest.mark.parametrize(("source", "target", "num_tokens"), [(0, 0, 5), (-1, 0, 5), (0, 64, 5), (0, 1, 0), (0, 1, 33)])
def test_a_page_copy_that_makes_no_sense_is_refused(source: int, target: int, num_tokens: int) -> None:
    with pytest.raises(EngineError, match=f"page {source} of 64 cannot give {num_tokens} tokens to page {target}"):
        compiled(Tiny()).copy_page(source, target, num_tokens)


def test_pages_are_counted() -> None:
    # layers, K and V, pages (a whole number of clusters), tokens, head_dim, kv heads, bytes
    assert compiled(Tiny(), pages=16).kv_bytes == compiled(Tiny(), pages=10).kv_bytes == 2 * 2 * 16 * 32 * 64 * 2 * 2


def test_memory_that_there_is_not_is_an_error_with_numbers() -> None:
    with pytest.raises(EngineError, match=r"no memory for the KV cache: \d+\.\d\d GiB"):
        in_limited_memory(lambda: compiled(Tiny(), pages=4_000_000))


def in_limited_memory(f):  # type: ignore[no-untyped-def]
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (32 << 30), before[1]))
    try:
        return f()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# --- interruption ----------------------------------------------------------------------------------------------------


def test_a_cancelled_step_stops_at_once_and_can_go_on_from_there() -> None:
    program = compiled(Tiny(kinds=("q8_0",), experts=3, shared=True))
    want = program.run(GOOD)
    cancel = CancelFlag()
    cancel.set()
    with pytest.raises(Interrupted) as stop:
        program.run(GOOD, cancel)
    assert stop.value.next_op == 0
    cancel.clear()
    assert_equal(program.run(GOOD, cancel), want)


def test_a_step_can_stop_before_any_operation_and_go_on() -> None:
    network = Tiny(kinds=("q4_k", "q8_0"), experts=3)
    want = compiled(network).run(GOOD)
    for bound in (1e-5, 1e-4, 3e-4, 1e-3):
        program = compiled(network)
        logits, firsts = None, [0]
        while logits is None:
            try:
                logits = program.run(GOOD, deadline=time.monotonic() + bound, first_op=firsts[-1])
            except Interrupted as stop:
                bound *= 1 + (stop.next_op == firsts[-1])
                firsts.append(stop.next_op)
        assert_equal(logits, want)
        assert firsts == sorted(firsts)
        assert firsts[-1] < program.steps


@pytest.mark.parametrize("network", [Tiny(kinds=("q4_k", "q8_0")), Tiny(kinds=("int4", "int8"), experts=5, shared=True)])
def test_batches_that_run_beside_an_interrupted_one_change_nothing_of_it_and_are_right(network: Tiny) -> None:
    other = Batch(np.array([7, 9], np.int32), [Span(0, 1, 33, PAGES + 2), Span(1, 1, 0, PAGES[:1] + 4)], np.array([0, 1], np.int32))
    before = Batch(np.arange(33, dtype=np.int32), [Span(0, 33, 0, PAGES + 2)], np.array([], np.int32))
    plain = compiled(network)
    plain.run(before)
    want, want_other = plain.run(GOOD), plain.run(other)

    program = compiled(network)
    beside = program.beside(max_tokens=2, max_logits=2)
    program.run(before)
    logits, firsts, bound = None, [0], 1e-6
    while logits is None:
        try:
            logits = program.run(GOOD, deadline=time.monotonic() + bound, first_op=firsts[-1])
        except Interrupted as stop:
            bound = 2 * bound if stop.next_op == firsts[-1] else 1e-6  # no longer than anything takes
            firsts.append(stop.next_op)
            assert_equal(beside.run(other), want_other)
    assert_equal(logits, want)
    assert len(set(firsts)) > 5
    with pytest.raises(EngineError, match="room is for 1 to 2"):
        beside.run(GOOD)
    beside.close()


def test_a_cancel_from_another_thread_stops_a_running_step() -> None:
    code = """
        import threading, time, numpy as np
        from qwenbox.kernels.program import CancelFlag, Interrupted
        from tests.kernels.networks import Tiny, compiled, rows_batch
        program = compiled(Tiny(kinds=("q8_0",), hidden=1024, heads=16, head_dim=64, inner=2048, vocab=256), tokens=256, isa="generic")
        cancel = CancelFlag()
        started = time.monotonic()
        program.run(rows_batch(256))
        whole = time.monotonic() - started
        for _ in range(20):  # where the timer gets no processor, the step may be over or not begun
            cancel.clear()
            timer = threading.Timer(whole / 10, cancel.set)
            timer.start()
            started = time.monotonic()
            try:
                program.run(rows_batch(256), cancel)
            except Interrupted as stop:
                if 0 < stop.next_op < program.steps and time.monotonic() - started < whole:
                    print("interrupted")
                    break
            timer.join()
    """
    assert in_a_new_process(code).split() == ["interrupted"]


def test_a_deadline_in_the_past_stops_before_the_first_operation() -> None:
    with pytest.raises(Interrupted):
        compiled(Tiny()).run(GOOD, deadline=time.monotonic() - 1)


# --- threads ---------------------------------------------------------------------------------------------------------


def small_steps(threads: int) -> tuple[native.NativeProgram, Batch]:
    """A program whose work is little more than meetings of the threads."""
    rng = np.random.default_rng(0)
    weights = [matrix(rng, "f32", 256, 256) for _ in range(8)]

    def body(ops: Ops, x: object) -> object:
        for weight in weights:
            x = ops.linear(x, ops.weight(weight))
        return x

    return compiled(Steps(tensor(rng.standard_normal((16, 256))), body), threads=threads), rows_batch(16)


@pytest.mark.parametrize("threads", [2, 8])
def test_many_thousand_meetings_of_the_threads_lose_nothing(threads: int) -> None:
    program, batch = small_steps(threads)
    want = program.run(batch)
    for _ in range(1000):
        assert np.array_equal(program.run(batch), want)


def test_helpers_that_fell_asleep_between_steps_come_back() -> None:
    program, batch = small_steps(2)
    want = program.run(batch)
    for index in range(100):
        time.sleep(0.0005 * (index % 3))
        assert np.array_equal(program.run(batch), want)


def tasks() -> set[str]:
    """The threads of this process."""
    return set(os.listdir("/proc/self/task"))


def test_runtimes_come_and_go_without_leaving_threads() -> None:
    before = tasks()
    for _ in range(50):
        runtime = native.Native(threads=4)
        eventually(lambda: len(tasks() - before) == 3)  # one that was joined may be listed for a moment
        runtime.close()
    eventually(lambda: tasks() <= before)


def test_what_nobody_holds_any_more_is_given_back() -> None:
    before = tasks()
    program, batch = small_steps(4)
    program.run(batch)
    assert len(tasks() - before) == 3
    del program
    gc.collect()
    eventually(lambda: tasks() <= before)


@pytest.mark.parametrize("kind", ["int4", "q6_k", "bf16"])
def test_matrices_of_one_input_give_the_same_bits_together_and_apart(kind: str) -> None:
    rng = np.random.default_rng(4)
    x = tensor(rng.standard_normal((37, 512)))
    pairs = [(matrix(rng, kind, n, 512), matrix(rng, "f32", 64, n)) for n in (300, 70, 200)]

    def together(ops: Ops, x: Value) -> Value:
        return total(ops, [ops.linear(x, ops.weight(first)) for first, _ in pairs])

    def apart(ops: Ops, x: Value) -> Value:
        outputs = []
        for first, _ in pairs:
            outputs.append(ops.linear(x, ops.weight(first)))
            ops.add(x, x)
        return total(ops, outputs)

    def total(ops: Ops, outputs: list[Value]) -> Value:
        narrowed = [ops.linear(y, ops.weight(second)) for y, (_, second) in zip(outputs, pairs, strict=True)]
        return functools.reduce(ops.add, narrowed)

    for rows in (1, 5, 37):
        one, other = (compiled(Steps(x, body), threads=3).run(rows_batch(rows)) for body in (together, apart))
        np.testing.assert_array_equal(one, other)


def test_pages_of_either_size_give_the_same_bits() -> None:
    code = """
        import ctypes, numpy as np
        from tests.kernels.networks import Tiny, compiled, rows_batch
        network = Tiny(kinds=("int4", "q4_k"))
        large = compiled(network).run(rows_batch(40))
        PR_SET_THP_DISABLE = 41
        assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0
        assert np.array_equal(compiled(network).run(rows_batch(40)), large)
        print("same")
    """
    assert in_a_new_process(code).split() == ["same"]


WORKER = """
    import sys, threading, numpy as np
    from tests.kernels.test_native_runtime import small_steps
    told = threading.Thread(target=sys.stdin.read)
    told.start()
    program, batch = small_steps(3)
    want = program.run(batch)
    print("running", flush=True)
    while told.is_alive():
        assert np.array_equal(program.run(batch), want)
    print("done", flush=True)
"""


def test_a_process_that_is_stopped_and_continued_again_and_again_finishes() -> None:
    command = [sys.executable, "-c", textwrap.dedent(WORKER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=with_path()) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "running\n"
        try:
            for _ in range(40):
                helper = os.listdir(f"/proc/{process.pid}/task")[-1]  # the thread that was started last
                # A stop reaches the whole process; aimed at a helper, it is the helper that takes it.
                subprocess.run(["kill", "-STOP", helper], check=True)
                time.sleep(0.005)
                os.kill(process.pid, signal.SIGCONT)
                time.sleep(0.005)
            process.stdin.close()
            assert process.stdout.readline() == "done\n"
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_helpers_that_hardly_ever_run_change_nothing() -> None:
    code = """
        import os, numpy as np
        from tests.kernels.networks import Tiny, compiled
        from tests.kernels.test_native_runtime import small_steps
        from qwenbox.types import Batch, Span
        meetings, batch = small_steps(4)
        want = meetings.run(batch)
        pages = np.arange(20, dtype=np.int32)
        ids = np.arange(600, dtype=np.int32) % 90
        filled, one = Batch(ids, [Span(0, 600, 0, pages)], ids[:1]), Batch(ids[:1], [Span(0, 1, 600, pages)], ids[:1])
        single, shared = (compiled(Tiny(kinds=("q8_0",)), threads=threads, tokens=600) for threads in (1, 4))
        single.run(filled), shared.run(filled)
        row = single.run(one)
        processor = {min(os.sched_getaffinity(0))}
        for task in map(int, os.listdir("/proc/self/task")):
            os.sched_setaffinity(task, processor)
            if task != os.getpid():
                os.setpriority(os.PRIO_PROCESS, task, 19)
        for _ in range(50):
            assert np.array_equal(meetings.run(batch), want)
            assert np.array_equal(shared.run(one), row)
        print("same")
    """
    assert in_a_new_process(code).split() == ["same"]


def test_threads_that_cannot_be_started_are_an_error_and_none_of_them_stays() -> None:
    code = """
        import os, resource, threading
        from qwenbox.errors import QwenboxError
        from qwenbox.kernels import native
        native.Native(threads=2).close()
        before = len(os.listdir("/proc/self/task"))
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 50 * threading.stack_size() + (256 << 20), -1))
        try:
            native.Native(threads=1000)
        except QwenboxError as error:
            while len(os.listdir("/proc/self/task")) > before:
                os.sched_yield()  # a joined thread may be listed for a moment
            print(error.message)
    """
    assert "could not be started" in in_a_new_process(code)


def test_a_forked_child_gets_an_error_instead_of_waiting_for_threads_that_it_has_not() -> None:
    code = """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from qwenbox.errors import EngineError
        from tests.kernels.test_native_runtime import small_steps
        program, batch = small_steps(2)
        want = program.run(batch)
        child = os.fork()
        if child == 0:
            try:
                program.run(batch)
            except EngineError as error:
                own, batch = small_steps(2)
                same = (own.run(batch) == want).all()
                program._runtime.close()
                os._exit(42 if "fork" in str(error) and same else 1)
            os._exit(2)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), (program.run(batch) == want).all())
    """
    assert in_a_new_process(code).split() == ["42", "True"]


def test_the_callers_floating_point_mode_neither_matters_nor_changes() -> None:
    code = """
        import ctypes, ctypes.util, sys
        import numpy as np
        from tests.kernels.networks import Steps, compiled, rows_batch, tensor
        library = ctypes.CDLL(ctypes.util.find_library("m"))
        values = np.array([[1e-39] * 16, [3.0000001] * 16], np.float32)
        program = compiled(Steps(tensor(values), lambda ops, x: ops.silu_mul(x, x)), threads=1)
        want = program.run(rows_batch(2))
        UPWARD = 0x800 if sys.platform == "linux" else 0
        assert library.fesetround(UPWARD) == 0
        got = program.run(rows_batch(2))
        kept = library.fegetround() == UPWARD
        library.fesetround(0)
        print((got == want).all(), kept)
    """
    assert in_a_new_process(code).split() == ["True", "True"]


def test_other_python_threads_run_while_a_step_runs() -> None:
    code = """
        import threading, time
        from tests.kernels.networks import Tiny, compiled, rows_batch
        program = compiled(Tiny(kinds=("q8_0",), hidden=1024, heads=16, head_dim=64, inner=2048, vocab=128), tokens=128, isa="generic", threads=1)
        running, ticks = threading.Event(), 0
        def step():
            running.set()
            program.run(rows_batch(128))
            running.clear()
        thread = threading.Thread(target=step)
        thread.start()
        running.wait(60)
        while running.is_set():
            ticks += 1
            time.sleep(0.001)
        thread.join()
        print(ticks > 5)
    """
    assert in_a_new_process(code).split() == ["True"]
