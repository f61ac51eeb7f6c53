"""Where tables go: as wide as the terminal, and wide enough for every column where a file or a pipe reads them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_OF_A_FILE = 200
"""Columns; rich would fold its tables to 80, and cut contract ids and file names."""


def console() -> Console:
    """The console on stdout. COLUMNS sets its width, as everywhere."""
    from rich.console import Console

    found = Console()
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        found.width = WIDTH_OF_A_FILE
    return found
