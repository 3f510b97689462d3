"""Many small images in one: first-layer weights, outputs of convolutions, and galleries of test images.

All images of a figure are one picture on one pair of axes. Axes of their own, hundreds of them, would take longer to
lay out than all the rest of an analysis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GALLERY_COLUMNS = 10  # images in a row of a gallery
TILE_PIXELS = 28  # pixels of small images are repeated until a tile has at least so many
LARGEST_TILE = 256  # pixels of a side; a figure has no more for a tile, so larger ones would only take memory
GAP = 0.08  # space between tiles, as a part of a tile's side
TEXT_SPACE = 0.42  # space for the text above an image of a gallery, as a part of the image's height


def reshape_to_tiles(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return first-layer weights as square images of shape `(tiles, height, width)`.

    Args:
        weights: Weights of an MLP, `(features, inputs)`, which give one tile for each feature and channel, or filters
            of a CNN, `(filters, channels, k, k)`, which give one tile for each filter and channel.
    """
    if weights.ndim == 4:
        return weights.reshape(-1, *weights.shape[2:])
    inputs = weights.shape[1]
    channels = 1 if round(inputs**0.5) ** 2 == inputs else 3
    side = round((inputs / channels) ** 0.5)
    return weights.reshape(-1, side, side)


def make_mosaic(tiles: NDArray[Any], columns: int, above: float = GAP) -> NDArray[np.float64]:
    """Arrange tiles in rows on one picture, with gaps that are NaN.

    Args:
        tiles: Images, `(tiles, height, width)` or `(tiles, height, width, 3)`.
        columns: Tiles in a row; the last row may have fewer.
        above: Space above each tile, as a part of its height.

    Returns:
        The picture, `(rows * cell height, columns * cell width)`, with the channels after that if there are any.
    """
    repeats = -(-TILE_PIXELS // max(tiles.shape[1:3]))
    large = tiles.astype(np.float64).repeat(repeats, axis=1).repeat(repeats, axis=2)
    side = max(large.shape[1:3])
    gap, top = max(1, round(GAP * side)), max(1, round(above * side))
    rows = -(-len(tiles) // columns)
    channels = [(0, 0)] * (tiles.ndim - 3)
    cells = np.pad(
        large, [(0, rows * columns - len(tiles)), (top, 0), (gap, 0), *channels], constant_values=np.nan
    )  # (rows * columns, cell height, cell width, …)
    height, width, *rest = cells.shape[1:]
    lines = np.moveaxis(cells.reshape(rows, columns, height, width, *rest), 1, 2)
    return lines.reshape(rows * height, columns * width, *rest)


def scale_each(images: NDArray[Any]) -> NDArray[np.float64]:
    """Scale each image along the first axis to the range from 0 to 1; a value that is not finite becomes NaN."""
    values = np.where(np.isfinite(images), images, np.nan).astype(np.float64)
    axes = tuple(range(1, values.ndim))
    low, high = (extreme.reduce(values, axis=axes, keepdims=True) for extreme in (np.fmin, np.fmax))
    with np.errstate(over="ignore", invalid="ignore"):
        scaled: NDArray[np.float64] = (values - low) / np.maximum(high - low, np.finfo(np.float64).tiny)
    return scaled


@style.with_style
def draw_tiles(images: NDArray[np.float32], title: str, columns: int = 8) -> Figure:
    """Draw images of shape `(tiles, height, width)` as a grid of grey tiles on one scale, symmetric around zero."""
    columns = min(columns, len(images))
    mosaic = make_mosaic(images, columns)
    largest = float(np.abs(images).max()) or 1.0
    width = style.HALF_PAGE_WIDTH
    figure = style.make_figure(0.8 * width * mosaic.shape[0] / mosaic.shape[1] + 3 * style.LINE_HEIGHT, width)
    axes = figure.subplots()
    axes.set_axis_off()
    shown = axes.imshow(mosaic, cmap="gray", vmin=-largest, vmax=largest, interpolation="none")
    figure.colorbar(shown, ax=axes, shrink=0.9, label="weight")
    figure.suptitle(style.wrap_bold(title, width))
    return figure


@style.with_style
def draw_gallery(images: Mapping[str, NDArray[np.floating]], titles: Mapping[str, Sequence[str]], title: str) -> Figure:
    """Draw images as tiles, with one row for each name that has any.

    Args:
        images: Images of each row by its name, `(n, channels, height, width)` with n at most `GALLERY_COLUMNS`. One
            channel is shown in grey, three in colour.
        titles: Texts above the images of each row, by its name.
        title: Title of the whole figure.
    """
    names = [name for name, shown in images.items() if len(shown)]
    text = style.wrap_bold(title, style.PAGE_WIDTH)
    heading = style.LINE_HEIGHT * (len(text.splitlines()) + 0.5)
    if not names:
        figure = style.make_figure(heading)
        figure.suptitle(text)
        return figure
    rows = []
    for shown in (images[name] for name in names):
        row = np.full((GALLERY_COLUMNS, *shown.shape[1:]), np.nan)
        row[: len(shown)] = scale_each(shown)
        rows.append(np.broadcast_to(row.transpose(0, 2, 3, 1), (*row.shape[:1], *row.shape[2:], 3)))
    mosaic = make_mosaic(np.concatenate(rows), GALLERY_COLUMNS, above=TEXT_SPACE)
    cell_height, cell_width = mosaic.shape[0] / len(names), mosaic.shape[1] / GALLERY_COLUMNS
    figure = style.make_figure(0.94 * style.PAGE_WIDTH * mosaic.shape[0] / mosaic.shape[1] + heading)
    axes = figure.subplots()
    axes.imshow(np.nan_to_num(mosaic, nan=1.0), interpolation="none")
    axes.set_frame_on(False)
    top = cell_height * TEXT_SPACE / (1 + TEXT_SPACE)
    axes.set_xticks([])
    axes.set_yticks([cell_height * line + (cell_height + top) / 2 for line in range(len(names))], names)
    axes.tick_params(length=0)
    for line, name in enumerate(names):
        for column, above in enumerate(titles[name]):
            x, y = (column + 0.5) * cell_width, line * cell_height + 0.9 * top
            axes.text(x, y, above, horizontalalignment="center", verticalalignment="bottom")
    figure.suptitle(text)
    return figure


@style.with_style
def draw_grid(outputs: NDArray[Any], title: str) -> Figure:
    """Draw outputs of shape `(batch, channels, height, width)` as grey tiles, each on its own scale.

    Each row holds the outputs for one image, each column those of one kernel.
    """
    stride = max(1, max(outputs.shape[2:]) // LARGEST_TILE)
    shown = outputs[:, :, ::stride, ::stride]
    batch, channels, *side = shown.shape
    mosaic = make_mosaic(scale_each(shown.reshape(batch * channels, *side)), channels)
    width = max(style.PAGE_WIDTH, 0.35 * channels)
    height = min(width, 1.2 * channels) * mosaic.shape[0] / mosaic.shape[1]
    text = style.wrap_bold(title, width)
    figure = style.make_figure(height + style.LINE_HEIGHT * (len(text.splitlines()) + 0.5), width)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="none")
    figure.suptitle(text)
    return figure
