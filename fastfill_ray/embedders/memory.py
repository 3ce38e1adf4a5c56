"""How much memory a node, or the container that it is, has left. Only Linux tells; elsewhere nothing is ever full."""

from __future__ import annotations

import os
from pathlib import Path

_PROC, _GROUP = Path("/proc"), Path("/sys/fs/cgroup")


class Memory:
    """total_bytes, and what of it is in use now: of the machine, or of a container with a limit of its own."""

    def __init__(self, proc: Path = _PROC, group: Path = _GROUP) -> None:
        self._proc, self._group = proc, group
        self.total_bytes = min(self._machine("MemTotal") or 0, self._limit() or (1 << 62))

    def used_share(self) -> float:
        """From 0 to 1; what the kernel can take back from files does not count."""
        if not self.total_bytes:
            return 0.0
        if self._limit() is None:
            return 1 - (self._machine("MemAvailable") or 0) / self.total_bytes
        cached = dict(line.split() for line in (self._group / "memory.stat").read_text().splitlines())
        used = int((self._group / "memory.current").read_text()) - int(cached.get("inactive_file", 0))
        return used / self.total_bytes

    def resident_bytes(self, pid: int) -> int:
        """What a process holds; 0 if it is gone."""
        try:
            return int((self._proc / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            return 0

    def _machine(self, name: str) -> int | None:
        try:
            lines = (self._proc / "meminfo").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:")), None)

    def _limit(self) -> int | None:
        try:
            text = (self._group / "memory.max").read_text().strip()
        except OSError:
            return None
        return None if text == "max" else int(text)
