"""The style of all figures in one place: sizes, matplotlib's settings, and colours with their markers.

Figures are as wide as a page's text, or half as wide as a page. Their text has one size, so that a figure that is
shown at half a page's width can still be read.

The colours were chosen so that any two of them stay apart for readers who lack one kind of cones, and so that each
stands out from white. `tests/test_figures.py` simulates this. Markers tell the same things without colour.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

PAGE_WIDTH = 6.3  # inches; the text of an A4 page with margins of 25 mm
HALF_PAGE_WIDTH = 4.13  # inches; half of an A4 page
FONT_SIZE = 10.0  # points; 6.6 points where a figure of a page's width is shown at half a page's width
CHARACTERS_PER_INCH = 13.5  # characters of running text that fit in an inch
LINE_HEIGHT = 1.25 * FONT_SIZE / 72  # inches
MUTED = "#595959"  # lines of legends that stand for any colour, and single seeds where colour means something else

SETTINGS: Any = {  # a dict; newer versions of matplotlib type its keys one by one, older ones do not
    "font.size": FONT_SIZE,
    **dict.fromkeys(("axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), FONT_SIZE),
    **dict.fromkeys(("legend.fontsize", "legend.title_fontsize", "figure.titlesize", "figure.labelsize"), FONT_SIZE),
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text stays text, which a browser can search and read aloud
    "svg.hashsalt": "figures",  # ids within an SVG follow from its content, so that equal figures are equal files
}


@dataclass(frozen=True)
class Style:
    """Colour and marker of one curve or point: readers tell it apart by either of them."""

    color: str
    marker: str


# The styles of the architectures, the same in every figure.
STYLES: Mapping[str, Style] = {
    "mlp_1": Style("#D87070", "o"),
    "mlp_2": Style("#6E2600", "s"),
    "cnn_3": Style("#1F9AB5", "^"),
    "cnn_4": Style("#2414E6", "D"),
    "cnn_5": Style("#B660F0", "v"),
    "logistic": Style("#8A9900", "P"),
    "conv_pool": Style("#560080", "X"),
    "conv_pool_valid": Style("#062A33", "*"),
}
# The same colours for values that have no style of their own, in the order of their contrast to each other.
PALETTE = tuple(
    STYLES[name] for name in ("cnn_4", "mlp_1", "conv_pool_valid", "logistic", "cnn_5", "mlp_2", "cnn_3", "conv_pool")
)


def with_style(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that makes or saves figures, so that it does so in this style.

    Matplotlib reads its settings when it makes a part of a figure, and again when it writes a file.
    """
    return matplotlib.rc_context(SETTINGS)(function)


def choose_style(name: str, index: int) -> Style:
    """Return an architecture's own style, or one for the value at `index`, each with another pair of colour and marker.

    Args:
        name: Name of an architecture, or any other value as text.
        index: Position of the value among those that are drawn together.
    """
    rounds, place = divmod(index, len(PALETTE))
    return STYLES.get(name, Style(PALETTE[place].color, PALETTE[(place + rounds) % len(PALETTE)].marker))


def make_figure(height: float, width: float = PAGE_WIDTH) -> Figure:
    """Make an empty figure of the given size in inches, whose layout keeps its parts from overlapping."""
    return Figure(figsize=(width, height), layout="constrained")


def wrap(text: str, width: float) -> str:
    """Break a text into lines that fit in a width in inches."""
    return "\n".join(textwrap.wrap(text, int(CHARACTERS_PER_INCH * width)))


def wrap_bold(text: str, width: float) -> str:
    """Break a title in bold letters, which are wider, into lines that fit in a width in inches."""
    return wrap(text, 0.87 * width)


def join_names(names: Sequence[str]) -> str:
    """Return names as an enumeration: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
