"""All figures, drawn from results made by hand: legible, told apart by every reader, with all that counts on them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.typing import NDArray

import analysis.grid
import analysis.mnist
import analysis.part3
import analysis.part4
import analysis.part5
import analysis.pooling
import analysis.xor
from analysis import bands, figures, style, tiles
from analysis.bands import Band, Points
from analysis.grid import GridDrawOptions
from analysis.misclassified import describe_empty
from analysis.output import DrawOptions, Output
from analysis.part5 import Part5DrawOptions
from analysis.results import SweepResults, arrange_on_axes
from sweeps.experiment import MAIN_ARCHITECTURES
from sweeps.grid import Grid
from sweeps.mnist import Mnist
from sweeps.part3 import Part3
from sweeps.part4 import Part4
from sweeps.part5 import Part5
from sweeps.pooling import Pooling
from sweeps.sweep import Sweep
from sweeps.xor import Xor
from trainables.architectures import ARCHITECTURES
from trainables.result import Result
from trainables.training import list_record_steps
from trainables.trial import Trial
from trainables.xor import draw_initial_weights

SMALLEST_FONT = 6.5  # points, where a figure is shown at half a page's width
SMALLEST_DISTANCE = 30.0  # between two colours in CIELAB; 2.3 is the smallest that is seen side by side
# Linear RGB as readers see it who lack one kind of cones: Machado, Oliveira and Fernandes, "A Physiologically-based
# Model for Simulation of Color Vision Deficiency", IEEE TVCG 15 (2009), table 1, severity 1.0.
VISION: dict[str, Any] = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


# Colours and markers


def to_linear(color: str) -> NDArray[np.float64]:
    """Return a colour as linear RGB."""
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def see(color: str, vision: str) -> NDArray[np.float64]:
    """Return a colour as a reader sees it, in CIELAB under the white of sRGB."""
    rgb = np.clip(np.array(VISION[vision]) @ to_linear(color), 0, 1)
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.array(matrix) @ rgb / (0.9505, 1, 1.089)
    fx, fy, fz = (np.cbrt(v) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def compute_distance(colors: tuple[str, str], vision: str) -> float:
    first, second = (see(color, vision) for color in colors)
    return float(np.linalg.norm(first - second))


def test_the_simulation_confuses_what_readers_confuse() -> None:
    orange, olive = "#E0702F", "#8F9400"
    assert compute_distance((orange, olive), "usual") > 40
    assert compute_distance((orange, olive), "deuteranopia") < 6
    assert compute_distance(("#000000", "#FFFFFF"), "tritanopia") == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize("vision", VISION)
def test_all_colours_stay_apart_for_every_reader(vision: str) -> None:
    colors = sorted({look.color for look in (*style.STYLES.values(), *style.PALETTE)})
    distances = {pair: compute_distance(pair, vision) for pair in itertools.combinations(colors, 2)}
    assert len(colors) == 8
    assert min(distances.values()) >= SMALLEST_DISTANCE, min(distances, key=lambda pair: distances[pair])


def test_all_colours_stand_out_from_the_page() -> None:
    for look in style.STYLES.values():
        luminance = np.dot((0.2126, 0.7152, 0.0722), to_linear(look.color))
        assert 1.05 / (luminance + 0.05) >= 3  # as WCAG 2 asks of graphics (1.4.11)


def test_styles_are_told_apart_without_colour() -> None:
    assert len({look.marker for look in style.STYLES.values()}) == len(style.STYLES)
    assert set(MAIN_ARCHITECTURES) <= set(style.STYLES) <= set(ARCHITECTURES)
    values = [style.choose_style(str(index), index) for index in range(len(style.PALETTE) ** 2)]
    assert len({(look.color, look.marker) for look in values}) == len(values)
    assert style.choose_style("cnn_4", 1) is style.STYLES["cnn_4"]


# Every figure


class NoStore:
    """Stands for a store without any runs."""

    ignored: dict[str, Any] = {}  # noqa: RUF012

    def find_runs(self) -> dict[str, Any]:
        return {}


def make_result(trial: Trial) -> Result:
    """Make the result of a trial that learns; but cnn_3 never does with seed 1, nor does any network with a sigmoid."""
    generator = np.random.default_rng([trial.seed, len(trial.architecture), round(1e6 * trial.learning_rate)])
    steps = list_record_steps(trial, 4 if trial.dataset == "xor" else 1297)
    stuck = (trial.architecture == "cnn_3" and trial.seed == 1) or trial.activation == "sigmoid"
    rise = 1 - np.exp(-np.arange(1, len(steps) + 1) / len(steps) * 5)
    accuracy = np.full(len(steps), 10.0) if stuck else 10 + (80 + 3 * generator.uniform(size=len(steps))) * rise
    values = {
        "train_loss": np.full(len(steps), 2.3) if stuck else 2.4 * np.exp(-6 * np.linspace(0, 1, len(steps))),
        "gradient_norm": (1e-4 if stuck else 1.0) * generator.uniform(1, 2, len(steps)),
    }
    curves = {name: values.get(name, accuracy).astype(np.float32) for name in trial.quantities}
    weights = draw_initial_weights(trial.seed) if trial.dataset == "xor" else generator.normal(size=(16, 1, 3, 3))
    return Result(steps, curves, 10.0 if stuck else 88 + trial.seed / 4, weights.astype(np.float32))


def make_results(sweep: Sweep, make: Callable[[Trial], Result] = make_result) -> SweepResults:
    by_trial = {trial.id: make(trial) for trial in sweep.trials()}
    return SweepResults(arrange_on_axes(sweep, by_trial), by_trial, [], sweep, cast("Any", NoStore()), {})


LONG: dict[str, Any] = {"dataset": "digits", "epochs": 25}  # so that curves are smoothed


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Figure, str]]:
    """Draw all figures, with all architectures; return each with its description, by experiment and name."""
    root = tmp_path_factory.mktemp("figures")
    outputs = {}

    def draw(module: Any, options: Any, draw_options: Any) -> None:
        outputs[options.experiment] = Output(root / options.experiment)
        stages = [make_results(sweep) for sweep in options.stages(lambda trial: None)]
        module.draw(options, stages, outputs[options.experiment], draw_options)

    draw(analysis.part3, Part3(**LONG, seeds=6), DrawOptions())
    draw(analysis.part4, Part4(**LONG, seeds=3), DrawOptions())
    draw(analysis.part5, Part5(**LONG, seeds=5, milestones=(200, 400)), Part5DrawOptions())
    draw(analysis.xor, Xor(seeds=7, epochs=300), DrawOptions())
    draw(analysis.grid, Grid(**LONG, seeds=2, learning_rates=(0.1, 0.01, 0.001)), GridDrawOptions())
    for module, options in ((analysis.mnist, Mnist(**LONG)), (analysis.pooling, Pooling(**LONG))):
        outputs[options.experiment] = output = Output(root / options.experiment)
        results = make_results(options.sweep())
        output.save_figure(*draw_panels(module, options, results), results)
    generator = np.random.default_rng(0)
    output = outputs["tiles"] = Output(root)
    images = {str(name): generator.normal(size=(10 - name, 3, 8, 8)) for name in range(10)}
    titles = {name: ["is even"] * len(shown) for name, shown in images.items()}
    title = (
        "digits, model b, batch 25, seed 1 (best test accuracy): test images that it takes for the class at the left"
    )
    output.save_figure(tiles.draw_gallery(images, titles, title), "gallery", "A gallery. " * 9)
    output.save_figure(
        tiles.draw_tiles(generator.normal(size=(32, 28, 28)).astype(np.float32), title), "tiles", "Grey tiles. " * 9
    )
    output.save_figure(tiles.draw_grid(generator.normal(size=(5, 8, 9, 9)), title), "outputs", "Grey tiles. " * 9)
    return {
        f"{experiment}/{saved.name}": (saved.figure, saved.description)
        for experiment, output in outputs.items()
        for saved in output.figures
    }


def draw_panels(module: Any, options: Any, results: SweepResults) -> tuple[Figure, str, str]:
    figure, description = module.draw_panels(options, results)
    return figure, options.experiment, description


def list_texts(figure: Figure) -> list[Text]:
    return [text for text in cast("list[Text]", figure.findobj(Text)) if text.get_text().strip() and text.get_visible()]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_text_is_legible_at_half_a_pages_width(drawn: dict[str, tuple[Figure, str]]) -> None:
    """A figure that is narrower than half a page is shown as it is."""
    assert len(drawn) == 19
    for name, (figure, _) in drawn.items():
        assert figure.get_figwidth() <= style.PAGE_WIDTH, name
        shrunk = min(1.0, style.HALF_PAGE_WIDTH / figure.get_figwidth())
        small = {text.get_text() for text in list_texts(figure) if float(text.get_fontsize()) * shrunk < SMALLEST_FONT}
        assert small == set(), name


@pytest.mark.slow
def test_nothing_overlaps_or_leaves_the_page(drawn: dict[str, tuple[Figure, str]]) -> None:
    for name, (figure, _) in drawn.items():
        parts: list[Any] = [axes for axes in figure.axes if axes.get_visible() and axes.axison]
        parts += [*figure.legends, *(text for text in (figure._suptitle, figure._supxlabel) if text)]  # type: ignore[attr-defined]
        boxes = [part.get_tightbbox() for part in parts]
        for part, box in zip(parts, boxes, strict=True):
            assert box.x0 >= -1, (name, part)
            assert box.y0 >= -1, (name, part)
            assert box.x1 <= figure.bbox.x1 + 1, (name, part)
            assert box.y1 <= figure.bbox.y1 + 1, (name, part)
        for (first, box), (second, other) in itertools.combinations(zip(parts, boxes, strict=True), 2):
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(width, height) <= 2, (name, first, second)  # pixels


@pytest.mark.slow
def test_an_architecture_has_one_style_in_all_figures(drawn: dict[str, tuple[Figure, str]]) -> None:
    found = 0
    for name, (figure, _) in drawn.items():
        for handle in (handle for legend in figure.legends for handle in legend.legend_handles):
            if (label := str(cast("Line2D", handle).get_label())) in style.STYLES:
                line = cast("Line2D", handle)
                assert style.Style(str(line.get_color()), str(line.get_marker())) == style.STYLES[label], name
                found += 1
        if name in ("part3/part3", "part4/part4", "grid/curves"):
            pairs = {(line.get_color(), line.get_marker()) for axes in figure.axes for line in axes.lines}
            styles = {(look.color, look.marker) for look in (style.STYLES[name] for name in MAIN_ARCHITECTURES)}
            assert {pair for pair in pairs if pair[1] not in ("None", "", "x", "_", "|")} == styles
    assert found == 3 * len(MAIN_ARCHITECTURES)


@pytest.mark.slow
def test_axes_are_labelled_with_units(drawn: dict[str, tuple[Figure, str]]) -> None:
    """Steps and epochs are counts, and XOR's plane and the norm of a gradient have no unit."""
    without_unit = {"optimiser step", "epoch", "gradient norm", "input 1", "input 2", "weight", "prediction"}
    axes_names = {"architecture", "learning rate", "standard deviation σ of the noise"}
    labels = {
        axis.get_label_text()
        for figure, _ in drawn.values()
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
    }
    assert {label for label in labels if not re.fullmatch(r".+ \((%|nats)\)", label)} - {
        ""
    } <= without_unit | axes_names


@pytest.mark.slow
def test_figures_say_what_bands_are_and_how_many_seeds_there_are(drawn: dict[str, tuple[Figure, str]]) -> None:
    captions = {name: figure.get_supxlabel().replace("\n", " ") for name, (figure, _) in drawn.items()}
    assert captions["part3/part3"].startswith(
        "Mean curves, n = 6 seeds; thin lines: single seeds; bands: 95 % CI of the mean (Student's t, n = 6), none "
        "where only some seeds learnt. All are running means of 2 records. A large open symbol at the "
        "end of a dotted line: stuck at chance, counts in the mean."
    )
    assert "Outside the axes: cnn_3 seed 1 (stuck at chance)" in captions["part3/part3"]
    assert "95 %" not in captions["part4/part4"]
    assert "n = 3 seeds" in captions["part4/part4"]
    assert "7 or more per σ" in captions["xor/xor"]


@pytest.mark.slow
def test_descriptions_are_sentences_with_numbers(drawn: dict[str, tuple[Figure, str]]) -> None:
    for name, (_, description) in drawn.items():
        assert len(description) > 90, name
        assert description.strip().endswith("."), name
        assert "nan" not in description, name
        assert name.startswith("tiles/") or re.search(r"\d", description), name
    means = np.mean([10 if seed == 1 else 88 + seed / 4 for seed in range(6)])
    assert f"cnn_3 {means:.1f} % (1 of 6 stuck at chance)" in drawn["part3/part3"][1]


@pytest.mark.slow
def test_values_that_span_decades_are_on_a_log_scale(drawn: dict[str, tuple[Figure, str]]) -> None:
    scales = {name: [axes.get_yscale() for axes in figure.axes] for name, (figure, _) in drawn.items()}
    assert scales["part4/part4"] == ["log", "log"]
    assert scales["part3/part3"] == ["log", "linear", "linear", "linear"]  # the loss falls from 2.4 to 0.006
    assert set(scales["xor/loss"]) == set(scales["xor/xor"]) == {"log"}
    assert scales["part5/schedule"] == ["linear"]


@pytest.mark.slow
def test_a_picture_of_many_images_has_few_axes(drawn: dict[str, tuple[Figure, str]]) -> None:
    counts = {name: len(drawn[f"tiles/{name}"][0].axes) for name in ("gallery", "tiles", "outputs")}
    assert counts == {"gallery": 1, "tiles": 2, "outputs": 1}  # one for the colour bar


@pytest.mark.slow
def test_text_in_an_svg_stays_text(drawn: dict[str, tuple[Figure, str]], tmp_path: Path) -> None:
    style.with_style(drawn["part3/part3"][0].savefig)(tmp_path / "x.svg")
    svg = (tmp_path / "x.svg").read_text()
    assert re.search(r"<text[^>]*>training loss \(nats\)</text>", svg)
    assert len(svg) < 700_000
    assert matplotlib.rcParams["svg.fonttype"] == "path"  # the style ends with the drawing


# Stuck runs


def make_band(values: NDArray[np.float64], stuck: tuple[bool, ...], name: str = "cnn_3") -> Band:
    n, records = values.shape
    nothing = np.full(records, np.nan)
    return Band(
        name=name,
        labels=[f"{name} seed {seed}" for seed in range(n)],
        stuck=np.array(stuck),
        steps=np.arange(10, 10 * records + 1, 10),
        mean=values.mean(axis=0),
        low=nothing,
        high=nothing,
        runs=values,
        diverged=np.zeros((0, records)),
        over="seed",
        window=1,
    )


def make_axes(*curves: Band) -> Axes:
    axes = Figure().subplots()
    for band in curves:
        figures.draw_band(axes, band, style.STYLES["cnn_3"])
    figures.limit_y_range(axes, curves)
    return axes


LEARNS = np.array([50.0, 90, 95])
CHANCE = np.full(3, 10.0)


def test_a_stuck_run_is_dotted_and_ends_with_an_open_symbol() -> None:
    axes = make_axes(make_band(np.stack([LEARNS, CHANCE]), (False, True)))
    [dotted] = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [*np.asarray(dotted.get_ydata())][:3] == [10, 10, 10]
    [end] = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert np.asarray(end.get_xydata()).tolist() == [[30, 10]]
    assert end.get_marker() == style.STYLES["cnn_3"].marker
    [mean] = [line for line in axes.lines if np.array_equal(line.get_ydata(), (LEARNS + CHANCE) / 2)]
    assert mean.get_linewidth() > 1
    plain = make_axes(make_band(np.stack([LEARNS, LEARNS]), (False, False)))
    assert not [line for line in plain.lines if line.get_linestyle() == ":" or line.get_markerfacecolor() == "white"]


def test_only_runs_that_learnt_decide_the_range_where_others_did() -> None:
    other = make_band(np.stack([LEARNS, LEARNS]) - 1, (False, False), "mlp_1")
    mixed = make_band(np.stack([LEARNS, CHANCE]), (False, True))
    axes = make_axes(other, mixed)
    assert axes.get_ylim() == pytest.approx((49 - 2.3, 95 + 2.3))
    outside = figures.list_outside(axes, [other, mixed])
    assert outside == ["cnn_3 seed 1 (stuck at chance)"]  # the mean ends at 52.5, inside
    assert figures.describe_outside(outside) == "Outside the axes: cnn_3 seed 1 (stuck at chance)."


def test_a_setting_that_is_stuck_as_a_whole_decides_the_range_too() -> None:
    axes = make_axes(make_band(np.stack([CHANCE, CHANCE]), (True, True)), make_band(LEARNS[None], (False,)))
    assert axes.get_ylim() == pytest.approx((10 - 4.25, 95 + 4.25))
    assert figures.list_outside(axes, [make_band(np.stack([CHANCE, CHANCE]), (True, True))]) == []


def test_a_mean_that_stuck_runs_pull_out_of_the_axes_is_named() -> None:
    mixed = make_band(np.stack([LEARNS, CHANCE, CHANCE]), (False, True, True))
    names = figures.list_outside(make_axes(mixed), [mixed])
    assert names[-1] == "the mean over all seeds of cnn_3 (38.3)"
    assert figures.describe_outside([*names, *map(str, range(5))]).endswith("(38.3); 0; 4 more.")


def test_points_of_stuck_runs_are_open_and_have_no_part_in_the_range() -> None:
    points = Points(
        name="cnn_3",
        labels=["cnn_3 seed 0", "cnn_3 seed 1", "cnn_3 seed 2"],
        stuck=np.array([False, True, False]),
        x=np.array([99.0, 11, 98]),
        y=np.array([95.0, 10, 94]),
    )
    axes = Figure().subplots()
    figures.draw_points(axes, points, style.STYLES["cnn_3"])
    figures.limit_ranges(axes, [points])
    assert axes.get_xlim() == pytest.approx((97.95, 99.05))
    assert axes.get_ylim() == pytest.approx((93.95, 95.05))
    opened = [np.asarray(line.get_xydata()).tolist() for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert opened == [[[11, 10]], [[98.5, 94.5]]]  # the stuck seed, and the mean of the others
    names = figures.list_outside(axes, [points])
    assert names == ["cnn_3 seed 1 (stuck at chance)", "the mean over all seeds of cnn_3 (66.3)"]
    assert "(open: stuck at chance); large: their mean (open: without those)" in bands.describe_points([points])


def test_a_band_has_no_interval_between_runs_that_learnt_and_runs_that_did_not() -> None:
    data = make_results(Part3(**LONG, seeds=6, architectures=("cnn_3", "mlp_1")).sweep()).data
    mixed, learnt = (
        bands.compute_band(data.sel(architecture=name), "val_accuracy", name) for name in ("cnn_3", "mlp_1")
    )
    assert (mixed.has_interval, learnt.has_interval) == (False, True)
    assert mixed.labels[1] == "cnn_3 seed 1"
    assert learnt.high.max() <= 100  # an accuracy's interval is clipped


# Parts of figures


@settings(max_examples=20)
@given(st.floats(-3, 3), st.floats(0.1, 6))
def test_losses_are_on_a_log_scale_exactly_where_they_span_two_decades(start: float, decades: float) -> None:
    axes = Figure().subplots()
    band = make_band(10 ** np.linspace(start, start + decades, 4)[None], (False,))
    figures.choose_loss_scale(axes, [band])
    if abs(decades - 2) > 1e-9:
        assert (axes.get_yscale() == "log") == (decades > 2)


@pytest.mark.parametrize(
    ("low", "high", "form"),
    [(0.01, 100, r"0\.01|0\.1|1|10|100"), (0.3, 3, r"0\.5|1|2"), (1e-5, 1, r"\$\\mathdefault\{10\^\{-?\d\}\}\$")],
)
def test_ticks_of_a_log_axis_are_plain_where_numbers_are_short(low: float, high: float, form: str) -> None:
    axes = Figure(figsize=(6, 6)).subplots()
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    figures.label_decades(axes)
    axes.get_figure().draw_without_rendering()  # type: ignore[union-attr]
    shown = [tick.label1.get_text() for tick in axes.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert len(shown) >= 3
    assert [label for label in shown if not re.fullmatch(form, label)] == []


@given(
    arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5)), elements=st.floats(-9, 9)),
    st.integers(1, 4),
)
def test_a_mosaic_holds_every_tile_at_its_place(images: NDArray[np.float64], columns: int) -> None:
    mosaic = tiles.make_mosaic(images, columns)
    rows = -(-len(images) // columns)
    height, width = mosaic.shape[0] // rows, mosaic.shape[1] // columns
    repeats = -(-tiles.TILE_PIXELS // max(images.shape[1:]))
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        cell = mosaic[row * height : (row + 1) * height, column * width : (column + 1) * width]
        large = image.repeat(repeats, axis=0).repeat(repeats, axis=1)
        np.testing.assert_array_equal(cell[-large.shape[0] :, -large.shape[1] :], large)
        assert np.isnan(cell).sum() == cell.size - large.size  # the gaps
    assert np.isfinite(mosaic).sum() == images.size * repeats**2


@given(arrays(np.float64, (2, 3, 3), elements=st.floats(allow_nan=True, allow_infinity=True)))
def test_images_are_scaled_one_by_one(images: NDArray[np.float64]) -> None:
    for image, scaled in zip(images, tiles.scale_each(images), strict=True):
        finite = np.isfinite(image)
        assert np.isnan(scaled[~finite]).all()
        values = scaled[np.isfinite(scaled)]
        assert ((values >= 0) & (values <= 1)).all()


def test_curves_keep_their_ends_when_they_are_thinned() -> None:
    shown = figures.thin(1350)
    assert (shown[0], shown[-1], len(shown)) == (0, 1349, figures.RECORDS_DRAWN)
    assert figures.thin(3).tolist() == [0, 1, 2]


def test_single_runs_of_a_setting_are_one_line() -> None:
    axes = Figure().subplots()
    figures.draw_runs(axes, np.arange(3), np.stack([LEARNS, CHANCE]), color="black")
    [line] = axes.lines
    np.testing.assert_array_equal(line.get_ydata(), [50, 90, 95, np.nan, 10, 10, 10, np.nan])


def test_a_gallery_has_a_row_for_each_name_that_has_images() -> None:
    nothing, two = np.zeros((0, 1, 8, 8)), np.ones((2, 1, 8, 8))
    [axes] = tiles.draw_gallery({"even": nothing, "odd": two}, {"even": [], "odd": ["is even"] * 2}, "A title").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["odd"]
    assert [text.get_text() for text in axes.texts] == ["is even"] * 2
    assert tiles.draw_gallery({"even": nothing}, {"even": []}, "A title").axes == []
    assert describe_empty({"0": np.arange(0), "1": np.arange(3), "2": np.arange(0)}) == ", none for 0 and 2"
    assert describe_empty({"1": np.arange(3)}) == ""
