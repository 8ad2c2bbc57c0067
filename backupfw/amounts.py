"""Amounts as people read them."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def human_size(count: float) -> str:
    """Return bytes as people read them, e.g. ``64 KiB`` or ``12.3 MiB``."""
    power = max(0, min((int(count).bit_length() - 1) // 10, len(_UNITS) - 1))
    value = count / (1 << 10 * power)
    return (
        f"{value:.0f} {_UNITS[power]}" if value.is_integer() or not power else f"{value:.1f} {_UNITS[power]}"
    )
