"""The report's files under the output root."""

from __future__ import annotations

import json

from fastfill_ray.log.state import State
from fastfill_ray.report.html import report_html
from fastfill_ray.report.metrics_json import report_json
from fastfill_ray.storage.files import Files
from fastfill_ray.storage.paths import REPORT_HTML, REPORT_METRICS


def write_report(files: Files, state: State) -> None:
    """Write report.html and metrics.json anew; both follow from the log and may be deleted."""
    files.put_data(REPORT_HTML, report_html(state).encode())
    # In ASCII: people `cat` it, and JSON alone lets a terminal's control characters above 0x7f through.
    files.put_data(REPORT_METRICS, json.dumps(report_json(state), sort_keys=True, allow_nan=False).encode())
