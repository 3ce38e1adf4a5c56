"""How times are written for people, wherever."""

from __future__ import annotations

_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86400.0


def duration(seconds: float) -> str:
    """A time as people say it: 8 s, 2 min, 1 h 20 min, 3.2 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * _MINUTE_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    if seconds < 2 * _DAY_S:
        hours, rest = divmod(round(seconds / _MINUTE_S), 60)
        return f"{hours} h {rest} min"
    return f"{seconds / _DAY_S:.1f} days"
