"""CSV files as text: no value is converted or guessed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from metakm.errors import UserError


def read_csv(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file below its header, each as a dict of column to text.

    Raises:
        UserError: a file that cannot be read, or whose lines do not fit its header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a byte order mark
            header, *lines = list(csv.reader(file, strict=True)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"Expected {path.name} to be a CSV file that can be read, got: {error}") from error
    if len(set(header)) != len(header):
        raise UserError(f"Expected different columns in {path.name}, got one twice; was the file changed?")
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise UserError(
                f"Expected {len(header)} values in each line of {path.name}, got {len(line)} in line {number}; "
                "is it cut off?"
            )
    return [dict(zip(header, line, strict=True)) for line in lines]


def csv_text(records: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """A header and a line per record; None and missing values are left empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()
