"""Images of letters and digits, drawn from font files that installed packages ship.

Families are split, not images: some are drawn for the training of networks, the others for the gallery, so that the
gallery shows designs which no network has seen. All fonts are free ones (OFL, Apache, Bitstream Vera, Knuth).
"""

from __future__ import annotations

import importlib.util
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from fastfill_ray.errors import InputError

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
SIDE_PIXELS = 28
_CANVAS, _FONT_SIZE, _BASELINE = 96, 56, 68
# What a file's name starts with, and the package that ships it.
TRAINING_FAMILIES = {
    "Caladea": "font_caladea",
    "Carlito": "rinoh_typeface_carlito",
    "DejaVuSans": "matplotlib",
    "DejaVuSansMono": "matplotlib",
    "DejaVuSerif": "matplotlib",
    "FredokaOne": "font_fredoka_one",
    "Lato": "font_lato",
    "Roboto": "font_roboto",
    "SourceSerifPro": "font_source_serif_pro",
}
GALLERY_FAMILIES = {
    "AmaticSC": "font_amatic_sc",
    "FjallaOne": "font_fjallaone",
    "HankenGrotesk": "font_hanken_grotesk",
    "Intuitive": "font_intuitive",
    "Manrope": "font_manrope",
    "RedHatDisplay": "font_rhd",
    "STIXGeneral": "matplotlib",
    "SourceSansPro": "font_source_sans_pro",
    **dict.fromkeys(("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"), "matplotlib"),
}
# -Bold, -LightItalic, Bol, BolIta (STIX), or nothing. Variable fonts are drawn by their static files.
_STYLE = re.compile(r"(?!-Variable)(-[A-Za-z]+|Bol|Ita|Italic|BolIta)?")
_SLANTED = re.compile(r"(It|Ita|Italic|Oblique)$|^cmti")


class Face(NamedTuple):
    """One font file; ``slanted`` (italic or oblique) by its name."""

    name: str
    path: Path
    slanted: bool


class Glyphs(NamedTuple):
    """``images`` (N, 28, 28) uint8, ink is bright; ``labels`` (N,) int64 into CHARACTERS; ``slanted`` (N,) bool."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    slanted: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> Glyphs:
        return Glyphs(self.images[rows], self.labels[rows], self.slanted[rows])


def find_faces(families: dict[str, str]) -> list[Face]:
    """The faces of `families`, ordered by name; where a package ships a face as .ttf and .otf, the .ttf.

    Raises:
        InputError: a package is not installed, or no longer ships the family.
    """
    faces: dict[str, Face] = {}
    for family, package in families.items():
        found = importlib.util.find_spec(package)
        roots = [] if found is None else [Path(place) for place in found.submodule_search_locations or ()]
        files = sorted((path for root in roots for path in root.rglob("*.[to]tf")), key=lambda path: path.suffix)
        named = {
            path.stem: Face(path.stem, path, bool(_SLANTED.search(path.stem)))
            for path in files  # .otf first: the .ttf of the same name takes its place
            if path.stem.startswith(family) and _STYLE.fullmatch(path.stem[len(family) :])
        }
        if not named:
            raise InputError(
                f"font family {family!r}: no file in package {package!r}. Run: pip install 'fastfill_ray[bench]'"
            )
        faces |= named
    return [faces[name] for name in sorted(faces)]


def draw(faces: list[Face], per_glyph: int, seed: int) -> Glyphs:
    """Every character of every face, `per_glyph` times, each time disturbed anew; the same bits for the same seed."""
    images = list(_disturbed(faces, per_glyph, np.random.default_rng(seed)))
    per_face = len(CHARACTERS) * per_glyph
    return Glyphs(
        np.stack(images),
        np.tile(np.repeat(np.arange(len(CHARACTERS)), per_glyph), len(faces)),
        np.repeat(np.array([face.slanted for face in faces]), per_face),
    )


def _disturbed(faces: list[Face], per_glyph: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    for face in faces:
        font = ImageFont.truetype(face.path, _FONT_SIZE)
        for character in CHARACTERS:
            canvas = Image.new("L", (_CANVAS, _CANVAS))
            ImageDraw.Draw(canvas).text((_CANVAS / 2, _BASELINE), character, fill=255, font=font, anchor="ms")
            thick = canvas.filter(ImageFilter.MaxFilter(3))
            thin = Image.blend(canvas, canvas.filter(ImageFilter.MinFilter(3)), 0.6)  # a hairline must not vanish
            for stroke in rng.choice(3, size=per_glyph, p=(0.6, 0.25, 0.15)):
                yield _disturb((canvas, thick, thin)[stroke], rng)


def _disturb(glyph: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A photo of `glyph`: placed, scaled, turned, blurred, partly covered, unevenly lit, faint and noisy."""
    angle, shear = np.radians(rng.normal(0.0, 5.0)), rng.normal(0.0, 0.03)
    scale = rng.uniform(0.85, 1.15) * np.exp(rng.normal(0.0, 0.06, size=2))
    shift = rng.uniform(-5.0, 5.0, size=2)
    # From a pixel of the double-sized output to the canvas: both turn about their centres.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.array([[1, shear], [0, 1]])
    matrix = turn / scale * (_CANVAS * 0.75 / (2 * SIDE_PIXELS))
    offset = _CANVAS / 2 + shift - matrix @ np.full(2, SIDE_PIXELS)
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    placed = glyph.transform(
        (2 * SIDE_PIXELS, 2 * SIDE_PIXELS), Image.Transform.AFFINE, tuple(map(float, data)), Image.Resampling.BILINEAR
    )
    small = placed.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 1.8))).reduce(2)
    ink = np.asarray(small, dtype=np.float32) / 255
    if rng.random() < 0.2:
        top, left = rng.integers(0, SIDE_PIXELS - 6, size=2)
        height, width = rng.integers(4, 10, size=2)
        ink[top : top + height, left : left + width] = rng.uniform(0.0, 0.6)
    background = rng.uniform(0.0, 0.3)
    shade = background + rng.uniform(-0.15, 0.15) * np.linspace(-1, 1, SIDE_PIXELS)[:, None]
    photo = shade + ink * rng.uniform(0.35, 0.7) + rng.normal(0.0, rng.uniform(0.02, 0.1), size=ink.shape)
    return (np.clip(photo, 0.0, 1.0) * 255).astype(np.uint8)
