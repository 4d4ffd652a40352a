"""The real command on a terminal of its own, and what a person sees there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pyte

from tests.cli.command import Command


class Terminal:
    """A command on a terminal. `seen` is what came since the last wait, `lines` what scrolled away and what stands there now."""

    def __init__(self, command: Command, *words: object, columns: int = 80, rows: int = 24) -> None:
        self._main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        env = {**command.env, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            command.arguments(*words),
            env=env,
            cwd=command.folder,
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
        )
        os.close(other)
        self.seen = ""
        self.raw = ""
        self._screen = pyte.HistoryScreen(columns, rows, history=1000)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def lines(self) -> list[str]:
        before = ["".join(line[column].data for column in range(self._screen.columns)) for line in self._screen.history.top]
        return [line.rstrip() for line in (*before, *self._screen.display)]

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def paste(self, text: str) -> None:
        """As a terminal does it that was asked to mark what is pasted."""
        data = f"\x1b[200~{text}\x1b[201~".encode()
        while data:
            data = data[os.write(self._main, data[:1024]) :]

    def ask(self, line: str) -> None:
        """Types a line and returns at the next prompt, with nothing before that in `seen` but what came for it."""
        self.type(line + "\r")
        self.wait_for("\x1b[?2004l")  # the prompt gives the terminal back
        self.wait_for("\x1b[?2004h")

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Returns when `text` has come; what came before it is forgotten."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} did not come; got {self.seen!r}"
            if select.select([self._main], [], [], left)[0]:
                data = os.read(self._main, 65536)
                self._stream.feed(data)
                self.seen += data.decode(errors="replace")
                self.raw += data.decode(errors="replace")
        self.seen = self.seen.split(text, 1)[1]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
        os.close(self._main)
