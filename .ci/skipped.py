"""Ends with 1 if a test in the given JUnit files was skipped: here everything has to run.

Only the torch oracle may be missing, and only from a file other than the one of its own environment; and instructions, from the processor.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def skipped(path: Path) -> list[str]:
    """Names and reasons of the tests of a file that did not run."""
    found = []
    for case in ElementTree.parse(path).iter("testcase"):
        for skip in case.iter("skipped"):
            reason = skip.get("message", "")
            elsewhere = path.stem != "torch" and any(f"could not import '{name}'" in reason for name in ("torch", "transformers"))
            if not elsewhere and not reason.startswith("this processor "):
                found.append(f"{case.get('classname')}::{case.get('name')}: {reason}")
    return found


problems = [line for path in sys.argv[1:] for line in skipped(Path(path))]
for line in problems:
    print(f"skipped: {line}", file=sys.stderr)
sys.exit(1 if problems else 0)
