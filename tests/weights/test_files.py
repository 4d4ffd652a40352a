"""Mapped files: what is read ahead of its use, and given back after it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qwenbox.weights.files import map_file, read_ahead, release


def resident(path: Path) -> int:
    """KiB of the file that this process has mapped in."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(index for index, line in enumerate(lines) if line.endswith(str(path)))
    return next(int(line.split()[1]) for line in lines[at:] if line.startswith("Rss:"))


def test_a_released_part_of_a_file_leaves_the_process_and_can_still_be_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 16384)
    data = map_file(path)
    part = data[1 << 20 : 3 << 20].view("<u2").reshape(16, -1)
    read_ahead(part)
    total = int(data.sum(dtype=np.int64))
    assert resident(path) == 4096
    assert release(part)
    assert resident(path) <= 2048  # less where the system unmaps whole huge pages
    assert int(data.sum(dtype=np.int64)) == total


def test_other_arrays_are_left_alone() -> None:
    data = np.full(1 << 20, 7, np.uint8)
    read_ahead(data)
    assert not release(data[1000:])
    assert (data == 7).all()
