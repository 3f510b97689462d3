"""Figures as SVG elements that stand inside a page: small, described, and with ids that are unique in it."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from analysis.output import SavedFigure
from analysis.style import with_style

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
POINTS_PER_INCH = 72
IMAGE_DPI = 120  # of images in a figure, such as the tiles of weights
LONG_PATH_CHARACTERS = 1000
# Text stays text. Verdana is as wide as DejaVu Sans, which matplotlib has laid out the text with, and common elsewhere.
SETTINGS: Any = {"svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans", "Verdana"], "svg.hashsalt": "report"}
METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # None leaves an entry out

ElementTree.register_namespace("", SVG)


@with_style
def draw_svg(saved: SavedFigure, prefix: str, title: str) -> str:
    """Return a figure that was saved before as an `svg` element with the role of an image.

    Args:
        saved: Figure to draw; its description becomes that of the element.
        prefix: Beginning of all ids in the element.
        title: Name of the figure, for readers who cannot see it.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(SETTINGS):
        saved.figure.savefig(buffer, format="svg", dpi=IMAGE_DPI, bbox_inches=saved.box, metadata=METADATA)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in [element for element in parent if element.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style")]:
            parent.remove(child)
    rename_ids(root, prefix)
    for element in root.iter():
        shorten_numbers(element)
    for name in ("width", "height", "version"):  # the page decides the size, by the view box
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{prefix}-title {prefix}-desc", "focusable": "false"}
    for position, (name, text) in enumerate((("title", title), ("desc", saved.description))):
        element = ElementTree.Element(f"{{{SVG}}}{name}", id=f"{prefix}-{name}")
        element.text = text
        root.insert(position, element)
    return re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode"))


def rename_ids(root: ElementTree.Element, prefix: str) -> None:
    """Begin all ids with a prefix, where they are referred to as well, and remove those that nothing refers to."""
    referring = re.compile(r"url\(#([^)]+)\)")
    used: set[str] = set()
    for element in root.iter():
        if LINK in element.attrib:
            element.set("href", element.attrib.pop(LINK))
        for name, value in element.attrib.items():
            used |= {*referring.findall(value), *([value[1:]] if name == "href" and value.startswith("#") else [])}
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            if name == "id":
                if value in used:
                    element.set(name, f"{prefix}-{value}")
                else:
                    del element.attrib[name]
            elif name == "href" and value.startswith("#"):
                element.set(name, f"#{prefix}-{value[1:]}")
            elif "url(#" in value:
                element.set(name, referring.sub(rf"url(#{prefix}-\1)", value))


def shorten_numbers(element: ElementTree.Element) -> None:
    """Round an element's coordinates to a hundredth of a point, and those of a curve of many points to a tenth."""
    for name, value in element.attrib.items():
        if name in ("d", "points", "x", "y", "width", "height", "transform", "viewBox"):
            decimals = 4 if name == "transform" else 1 if len(value) > LONG_PATH_CHARACTERS else 2
            element.set(name, " ".join(round_numbers(value, decimals).split()))


def round_numbers(text: str, decimals: int) -> str:
    """Return a text with all its decimal numbers rounded."""
    return re.sub(r"-?\d+\.\d+", lambda found: f"{round(float(found[0]), decimals):g}", text)


def get_width_points(figure: Figure) -> float:
    """Return the width of a figure in points."""
    return float(figure.get_figwidth()) * POINTS_PER_INCH
