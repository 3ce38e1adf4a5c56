"""The report as one self-contained HTML page: no script, no request, light and dark, printable.

The template escapes every value on its way into the page, and what could turn the direction of text becomes visible.
The content security policy in the page's head lets a browser load nothing, even if a value were missed.
"""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastfill_ray.log.state import State
from fastfill_ray.report.page import page_of
from fastfill_ray.report.wording import MISSING
from fastfill_ray.sanitize import printable


def _visible(value: object) -> object:
    """Text of the log as ``printable``; markup of ours, such as the charts and the style sheet, as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


_ENVIRONMENT = Environment(
    loader=PackageLoader("fastfill_ray.report", "."),
    autoescape=True,
    finalize=_visible,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def report_html(state: State, price: float | None = None) -> str:
    """The whole page. Any state gives one, from an empty log to a finished run.

    Args:
        price: of an hour of one actor; None where none is given.
    """
    page = None if state.plan is None else page_of(state, state.plan, price)
    return _ENVIRONMENT.get_template("report.html.j2").render(page=page, missing=MISSING)
