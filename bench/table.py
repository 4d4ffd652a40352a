"""Measurements as rows of a CSV file, each written at once, and as a Markdown table."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class Table:
    """The rows of one CSV file with the columns `fields`, appended one at a time. A file with other columns is refused."""

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        self.path = path
        self.fields = list(fields)
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames != self.fields:
                    raise SystemExit(f"{path} has the columns {reader.fieldnames}, not {self.fields}: move it away")
                self.rows = list(reader)

    def matching(self, key: dict[str, Any]) -> Iterator[dict[str, str]]:
        return (row for row in self.rows if all(row[name] == str(value) for name, value in key.items()))

    def find(self, key: dict[str, Any]) -> dict[str, str] | None:
        return next(self.matching(key), None)

    def add(self, row: dict[str, Any]) -> dict[str, str]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.fields)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append({name: str(value) for name, value in row.items()})
        return self.rows[-1]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile, interpolated between the values."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, middle, third


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
