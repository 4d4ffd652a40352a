"""A child process for what nobody trusts: it may compute and answer, and nothing else.

Two sides. The parent calls `run` with a program file and its input. The program, which gets no environment and finds this module in the folder
that is its first argument, reads its input, loads every module that it will want, and calls `give_up` before it looks at what nobody trusts: from
then on it opens no file, no socket and no process, signals nobody, and has so much memory and processor time. What it wrote before its end is
what `run` returns.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

PACKAGE_FOLDER = str(Path(__file__).parent.parent)


class Finished(NamedTuple):
    """How a child ended: by itself, with its exit status (negative: the signal that ended it), or because it took too long or said too much."""

    output: bytes
    status: int
    ended: Literal["itself", "time", "output"] = "itself"


def run(program: Path, data: bytes, *, folders: Sequence[str] = (), seconds: float, max_output: int) -> Finished:
    """Runs a program file on `data` as its stdin, and reads what it writes on stdout. `folders` are put before Python's own modules.

    The child and all that it may have started are gone when this returns. OSError where no process can be started.
    """
    # Sets have the same order in every run: what a program says must not depend on chance.
    command = [sys.executable, "-P", "-s", "-S", str(program), PACKAGE_FOLDER, *folders]
    deadline = time.monotonic() + seconds
    source = os.memfd_create("input")
    try:
        with open(source, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(source, 0, os.SEEK_SET)
        process = subprocess.Popen(
            command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"PYTHONHASHSEED": "0"}, cwd="/", start_new_session=True
        )
    finally:
        os.close(source)
    ended: Literal["itself", "time", "output"] = "itself"
    output = bytearray()
    try:
        assert process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            while True:
                if not waiting.select(max(0.0, deadline - time.monotonic())):
                    ended = "time"
                    break
                piece = os.read(process.stdout.fileno(), 1 << 16)
                output += piece
                if len(output) > max_output:
                    ended = "output"
                if not piece or ended == "output":
                    break
        if ended == "itself":
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                ended = "time"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        with process:  # closes the pipe and waits
            pass
    return Finished(bytes(output), process.returncode, ended)


# --- inside the child ------------------------------------------------------------------------------------------------

_SYSCALLS = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8,
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
    "rt_sigreturn": 15, "readv": 19, "writev": 20, "select": 23, "sched_yield": 24, "mremap": 25,
    "madvise": 28, "nanosleep": 35, "getpid": 39, "exit": 60, "uname": 63, "gettimeofday": 96,
    "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107,
    "getegid": 108, "getppid": 110, "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "pselect6": 270,
    "ppoll": 271, "set_robust_list": 273, "getrandom": 318, "membarrier": 324, "rseq": 334, "futex_waitv": 449,
}  # fmt: skip
"""What an interpreter needs to compute, wait and end, with the numbers of x86-64. None of these reaches another process or a name."""
_X86_64 = 0xC000003E
_SET_DEATH_SIGNAL, _SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 1, 38, 22, 2
_LOAD, _EQUALS, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)


def give_up(*, memory_bytes: int, cpu_seconds: int, strictly: bool) -> None:
    """Gives up what is not needed from now on. Every module that is wanted must be there already.

    `strictly`: OSError where the system has no filter of calls. Without one there are still no files and no sockets, but a program can do harm
    that takes no descriptor: signal other processes, remove files by name.
    """
    die_with_parent()  # `run` waits in the thread that started this process, and may be killed
    os.nice(10)  # people's answers first
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
    # SIGXCPU says what happened; who catches it is killed a second later.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    try:
        _filter_calls()
    except OSError:
        if strictly:
            raise


def _filter_calls() -> None:
    """From now on every system call that is not in `_SYSCALLS` fails with EPERM, for this process and for good (seccomp(2), filter mode)."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise OSError(errno.ENOSYS, "calls are filtered on Linux and x86-64 only")
    count = len(_SYSCALLS)
    steps = [(_LOAD, 0, 0, 4), (_EQUALS, 1, 0, _X86_64), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    steps += [(_EQUALS, count - index, 0, number) for index, number in enumerate(_SYSCALLS.values())]
    steps += [(_RETURN, 0, 0, _REFUSE | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    system = ctypes.CDLL(None, use_errno=True)
    none = ctypes.c_ulong(0)
    for call in ((_SET_NO_NEW_PRIVILEGES, ctypes.c_ulong(1), none), (_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.byref(program))):
        if system.prctl(*call, none, none) != 0:
            raise OSError(ctypes.get_errno(), "the system filters no calls")
