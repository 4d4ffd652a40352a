"""`python -m qwenbox`."""

from qwenbox.cli import main

main()
