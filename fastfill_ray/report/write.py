"""The report's files under the output root."""

from __future__ import annotations

import json

from fastfill_ray.errors import FileMissing
from fastfill_ray.log.state import State
from fastfill_ray.report.html import report_html
from fastfill_ray.report.metrics_json import report_json
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import REPORT_HTML, REPORT_METRICS


def write_report(files: Files, state: State, price: float | None) -> None:
    """Write report.html and metrics.json where they are not there as they should be; both follow from the log and may
    be deleted.

    Args:
        price: of an hour of one actor, which the log does not know; None where none is given.
    """
    # In ASCII: people `cat` it, and JSON alone lets a terminal's control characters above 0x7f through.
    metrics = json.dumps(report_json(state), sort_keys=True, allow_nan=False)
    for path, data in ((REPORT_HTML, report_html(state, price).encode()), (REPORT_METRICS, metrics.encode())):
        if _get(files, path) != data:
            files.put_data(path, data)


def _get(files: Files, path: str) -> bytes | None:
    try:
        return files.get(path)
    except FileMissing:
        return None
