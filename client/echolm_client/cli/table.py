"""Lists in columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

_GAP = "  "


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        is_text: it is aligned at the left, and gives way where a terminal is too narrow. Any
            other column, of numbers or ids, is always whole.
    """

    title: str
    is_text: bool = False


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None) -> str:
    """Rows under titles, each in one line, ending with a newline.

    Args:
        width: columns of the terminal; None: as wide as it has to be, nothing is shortened.
    """
    lines = [[column.title for column in columns], *([_shown(cell) for cell in r] for r in rows)]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
    if width is not None:
        too_wide = sum(widths) + len(_GAP) * (len(columns) - 1) - width
        texts = [i for i, column in enumerate(columns) if column.is_text]
        for i in sorted(texts, key=widths.__getitem__, reverse=True):
            kept = min(widths[i], max(cell_len(columns[i].title), widths[i] - max(0, too_wide)))
            too_wide -= widths[i] - kept
            widths[i] = kept
    return "".join(
        _GAP.join(
            _fitted(cell, size, column.is_text)
            for cell, size, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        + "\n"
        for line in lines
    )


def _shown(cell: str) -> str:
    """In one line, and without characters that would command the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(cell.split()))


def _fitted(cell: str, size: int, is_text: bool) -> str:
    if cell_len(cell) > size:
        return set_cell_size(cell, size - 1) + "…"
    padding = " " * (size - cell_len(cell))
    return cell + padding if is_text else padding + cell
