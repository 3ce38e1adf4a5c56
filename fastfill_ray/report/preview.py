"""What the next start would do, for people."""

from __future__ import annotations

from fastfill_ray.log.preview import Action, Preview, Serving
from fastfill_ray.sanitize import printable

_ACTIONS: dict[Action, str] = {
    "nothing": "nothing, all is done",
    "go on": "goes on with the plan that there is",
    "begin": "makes the first plan: pairs, map and order are chosen",
    "follow": "follows the gallery: pairs, map and order stay, nothing is trained or chosen",
    "order anew": "makes an order of its own, as a first plan does; what is embedded stays",
}


def preview_lead(found: Preview) -> str:
    """What to do now, where that is not what the log alone says: the gallery has changed, or the start is refused."""
    if found.error is not None:
        return f"Settle first what the next start would be refused for: {printable(found.error)}"
    if found.action == "follow" and found.changes is not None:
        items = found.changes.added + (found.changes.changed or 0) + found.changes.removed
        return f"Start the run again: the gallery has changed, {items:,} items differ."
    return ""


def preview_words(found: Preview, now: Serving) -> str:
    """Some lines; the last one says what is served now."""
    lines = [f"At work: {driver}. A start now would end with exit code 75." for driver in found.drivers]
    when = "Next start"
    if found.publishes is not None:
        lines.append(f"{when}: publishes version {found.publishes} first.")
    if found.error is not None:
        lines.append(f"{when}: ends with exit code {found.exit_code}. {found.error}")
        when = "Once that is settled"
    if found.action is not None:
        reason = f" ({found.reason})" if found.reason else ""
        lines.append(f"{when}: {_ACTIONS[found.action]}{reason}.")
    if (files := found.files) is not None:
        same = f"{files.same:,} as before"
        lines.append(f"Files: {files.added:,} added, {files.changed:,} changed, {files.gone:,} gone, {same}.")
    if (changes := found.changes) is not None:
        changed = "" if changes.changed is None else f"{changes.changed:,} changed, "
        lines.append(f"Items: {changes.added:,} added, {changed}{changes.removed:,} removed; {found.items:,} then.")
    if (work := found.work) is not None:
        lines.append(
            f"New vectors: {work.served:,} items are served with theirs, {work.known:,} are embedded and not served "
            f"yet, {work.due:,} are to be embedded at most."
        )
    lines.append(_serving_words(now))
    return "\n".join(map(printable, lines))


def _serving_words(now: Serving) -> str:
    if now.version is None:
        return "Served now: nothing."
    return f"Served now: version {now.version}; items still stale: {now.stale:,}; absent: {now.absent:,}."
