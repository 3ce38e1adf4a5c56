"""The report as one self-contained HTML page: no script, no request, light and dark, printable.

The template escapes every value on its way into the page. The content security policy in the page's head lets a browser
load nothing, even if a value were missed.
"""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from fastfill_ray.log.state import State
from fastfill_ray.report.page import page_of

_ENVIRONMENT = Environment(
    loader=PackageLoader("fastfill_ray.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def report_html(state: State) -> str:
    """The whole page. Any state gives one, from an empty log to a finished run."""
    page = None if state.plan is None else page_of(state, state.plan)
    return _ENVIRONMENT.get_template("report.html.j2").render(page=page)
