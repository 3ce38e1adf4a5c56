"""The README's picture and table, from the log of a finished run:

    python benchmarks/readme_picture.py demo-data/run --readme README.md > docs/images/curve.svg

The picture goes to stdout: the backfilling curve of the run's objective as a standalone SVG that follows the reader's
light or dark scheme. The table goes between the ``demo:table`` marks of the file after ``--readme``, else to stderr.
"""

from __future__ import annotations

import argparse
import sys
from html import escape
from pathlib import Path

from fastfill_ray.log.state import State
from fastfill_ray.report.chart import HEIGHT, LEFT, WIDTH, svg
from fastfill_ray.report.model import HEADINGS, MeasuredCurve, column_note, objective_curve, table_rows
from fastfill_ray.report.wording import metric_name
from fastfill_ray.storage.commit_log import read_state
from fastfill_ray.storage.files import open_files

BEGIN, END = "<!-- demo:table -->", "<!-- /demo:table -->"
TITLE_HEIGHT = 30
# The picture paints its own background: GitHub's theme may differ from the scheme that the browser reports.
STYLE = """
svg { --bg: #ffffff; --fg: #1c1e21; --soft: #5c6269; --rule: #d9dce0;
  --curve: #0064a3; --plain: #a34700; --new: #00704f; --old: #5c6269; }
@media (prefers-color-scheme: dark) { svg { --bg: #15171a; --fg: #e7e9ec; --soft: #a3a9b1; --rule: #363a40;
  --curve: #5cb8f0; --plain: #f0995c; --new: #46c79c; --old: #a3a9b1; } }
text { font: 12px system-ui, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--soft);
  paint-order: stroke; stroke: var(--bg); stroke-width: 3px; }
.title { font-size: 13px; font-weight: 600; fill: var(--fg); }
.page { fill: var(--bg); }
.grid { stroke: var(--rule); stroke-width: 1; }
.band { fill: var(--curve); opacity: .16; }
.whisker { stroke: var(--curve); stroke-width: 1.5; }
.line { fill: none; stroke: var(--curve); stroke-width: 2.25; }
.line-plain { fill: none; stroke: var(--plain); stroke-width: 1.25; stroke-dasharray: 5 4; }
.arm-old { stroke: var(--old); stroke-width: 1.25; stroke-dasharray: 1.5 3; }
.arm-new { stroke: var(--new); stroke-width: 1.25; stroke-dasharray: 9 4; }
.dot { fill: var(--curve); stroke: var(--curve); stroke-width: 2; }
.dot-held { fill: var(--bg); stroke: var(--curve); stroke-width: 2; }
.t-curve { fill: var(--curve); font-weight: 600; }
.t-plain { fill: var(--plain); }
.t-old { fill: var(--old); }
.t-new { fill: var(--new); }
.leader { fill: none; stroke: var(--rule); stroke-width: 1; }
"""


def standalone(curve: MeasuredCurve) -> str:
    """The report's chart as an SVG file of its own, with a title above it."""
    opening, rest = svg(curve).split(">", 1)
    view = f"0 {-TITLE_HEIGHT} {WIDTH} {HEIGHT + TITLE_HEIGHT}"
    opening = opening.replace(f'viewBox="0 0 {WIDTH} {HEIGHT}"', f'viewBox="{view}"', 1)
    opening = opening.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    title = f"{metric_name(curve.metric)} by {curve.relevance}"
    return (
        f"{opening}>\n<style>{STYLE}</style>\n"
        f'<rect class="page" y="{-TITLE_HEIGHT}" width="{WIDTH}" height="{HEIGHT + TITLE_HEIGHT}" rx="6"/>\n'
        f'<text class="title" x="{LEFT}" y="-8">{escape(title)}</text>\n{rest}\n'
    )


def markdown_table(state: State) -> str:
    """The version table as Markdown, what its metrics mean below it."""
    lines = [HEADINGS, tuple("---:" if heading != "version" else "---" for heading in HEADINGS), *table_rows(state)]
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
    sys.stdout.write(standalone(curve))
    return 0


if __name__ == "__main__":
    sys.exit(main())
