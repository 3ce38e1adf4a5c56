"""The benchmark of predictions counts what lies inside, and asks ten galleries that its sets can fill."""

from __future__ import annotations

from typing import Any

from benchmarks.predictions import GALLERIES, render


def version(scope: str, measured: float, uncorrected: list[float] | None) -> dict[str, Any]:
    return {
        "fraction": 0.25,
        "scope": scope,
        "objective": "label/map",
        "predicted": [0.5, 0.4, 0.6],
        "uncorrected": uncorrected,
        "measured": measured,
    }


def test_every_version_is_a_line_and_the_share_inside_stands_below() -> None:
    result = {
        "gallery": "one",
        "pairs": 1000,
        "versions": [version("gallery", 0.45, [0.7, 0.65, 0.75]), version("gallery", 0.61, None)],
    }
    lines = render([result, {**result, "versions": [version("audit", 0.5, [0.5, 0.4, 0.6])]}]).splitlines()
    assert (
        "| one (1,000 pairs) | label/map (gallery) | 25 % | 0.700 [0.650, 0.750] | 0.500 [0.400, 0.600] |" in lines[2]
    )
    assert lines[2].endswith("| 0.450 | yes |")
    assert lines[3].endswith("| - | 0.500 [0.400, 0.600] | 0.610 | no |")
    assert "- Scope gallery: predicted: 50 % of 2 inside, mean width 0.200" in lines[6]
    assert "uncorrected: 0 % of 1 inside, mean width 0.100, mean error 0.250." in lines[6]
    assert lines[-1] == "- Galleries of which every version lies inside: 1 of 2."


def test_twelve_galleries_of_three_kinds_from_400_to_20_000_items_two_of_them_with_a_log() -> None:
    assert len(GALLERIES) == 12
    assert sum(gallery.objective.startswith("log/") for gallery in GALLERIES.values()) == 2
    assert {gallery.data.partition("-")[0] for gallery in GALLERIES.values()} == {"digits", "docstrings", "glyphs"}
    rows = [gallery.rows for gallery in GALLERIES.values()]
    assert (min(rows), max(rows)) == (400, 20_000)
    assert all(gallery.waves[-1] == 1 for gallery in GALLERIES.values())
