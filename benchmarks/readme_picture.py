"""The README's picture and table, from the log of a finished run:

    python benchmarks/readme_picture.py demo-data/run --readme README.md > docs/images/curve.svg

The picture goes to stdout: the backfilling curve of the run's objective as a standalone SVG that follows the reader's
light or dark scheme. The table goes between the ``demo:table`` marks of the file after ``--readme``, else to stderr.
"""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from pathlib import Path

from markupsafe import Markup

from fastfill_ray.log.state import State
from fastfill_ray.report.chart import MEDIUM, drawing, element, summary
from fastfill_ray.report.model import HEADINGS, MeasuredCurve, column_curves, column_note, objective_curve, table_rows
from fastfill_ray.report.wording import MISSING, metric_name, score
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files

BEGIN, END = "<!-- demo:table -->", "<!-- /demo:table -->"
TITLE_HEIGHT = 30
# The picture paints its own background: GitHub's theme may differ from the scheme that the browser reports.
STYLE = """
.title { font-size: 13px; font-weight: 600; fill: var(--fg); }
.page { fill: var(--bg); }
"""


def standalone(curve: MeasuredCurve) -> str:
    """The report's chart as an SVG file of its own, with a title above it."""
    style = resources.files("fastfill_ray.report").joinpath("chart.css").read_text(encoding="utf-8") + STYLE
    size = {"width": MEDIUM.width, "height": MEDIUM.height + TITLE_HEIGHT}
    return element(
        "svg",
        element("style", Markup(style)),  # of the package itself: nothing in it is to be escaped
        element("rect", css="page", y=-TITLE_HEIGHT, rx=6, **size),
        element("text", f"{metric_name(curve.metric)} by {curve.relevance}", css="title", x=MEDIUM.left, y=-8),
        drawing(curve, (), MEDIUM),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 {-TITLE_HEIGHT} {MEDIUM.width} {MEDIUM.height + TITLE_HEIGHT}",
        role="img",
        aria_label=summary(curve),
    )


def markdown_table(state: State) -> str:
    """The version table as Markdown with the objective, without columns that are empty; what its metrics mean below."""
    columns = list(zip(HEADINGS, *table_rows(state), strict=True))
    curve = objective_curve(state)
    if curve is not None and curve.name not in {each.name for each in column_curves(state).values()}:
        value_of = {str(point.version): score(point.value) for point in curve.points}
        value_of |= {arm: score(v.value) for arm, v in (("old/old", curve.old), ("new/new", curve.new)) if v}
        cells = [value_of.get(version, MISSING) for version in columns[0][1:]]
        columns.insert(4, (metric_name(curve.metric), *cells))
    columns = [column for column in columns if set(column[1:]) != {MISSING}]
    first, *rows = zip(*columns, strict=True)
    lines = [first, tuple("---:" if heading != "version" else "---" for heading in first), *rows]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines]) + f"\n\n{column_note(state)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="output root of a run")
    parser.add_argument("--readme", type=Path, help="file whose marked table is replaced")
    arguments = parser.parse_args()
    state = read_state(open_files(arguments.root))
    curve = objective_curve(state)
    if curve is None:
        parser.error(f"{arguments.root}: no version has been measured yet")
    table = markdown_table(state)
    if arguments.readme is None:
        print(table, file=sys.stderr)
    else:
        text = arguments.readme.read_text()
        if text.count(BEGIN) != 1 or text.count(END) != 1:
            parser.error(f"{arguments.readme}: one line {BEGIN} and one line {END} are expected")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        arguments.readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
    print(standalone(curve))
    return 0


if __name__ == "__main__":
    sys.exit(main())
