"""Amounts as people write them."""

from __future__ import annotations


def size_text(size: int) -> str:
    """Return *size* bytes as people write it: ``412.3 MiB``."""
    value = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{size} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")
