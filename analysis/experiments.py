"""The experiments that a report can hold: their options, their analyses, and the questions that they ask.

Quick to import: an analysis is imported when it is loaded, as it needs MLflow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeps.experiment import SweepOptions
from sweeps.grid import Grid
from sweeps.mnist import Mnist
from sweeps.part3 import Part3
from sweeps.part4 import Part4
from sweeps.part5 import Part5
from sweeps.pooling import Pooling
from sweeps.search import Search
from sweeps.xor import Xor

if TYPE_CHECKING:
    from analysis.output import DrawOptions, Output
    from analysis.results import SweepResults


@dataclass(frozen=True)
class Experiment:
    """An experiment, as a report presents it.

    Attributes:
        options_type: Class of the options that select its trials.
        draw_options_name: Name of the class of its options for drawing, as its analysis imports or defines it.
        title: Heading of its part of the report.
    """

    options_type: type[SweepOptions]
    draw_options_name: str
    title: str

    @property
    def question(self) -> str:
        """The question that it is to answer."""
        return self.options_type.question

    def load_draw(self) -> Callable[[Any, Sequence[SweepResults], Output, Any], None]:
        """Import the analysis, and return its function that draws."""
        draw: Callable[[Any, Sequence[SweepResults], Output, Any], None] = self._import_analysis().draw
        return draw

    def make_draw_options(self, data_root: Path) -> DrawOptions:
        """Return the options for drawing a report's figures: the defaults, missing trials allowed.

        Args:
            data_root: Folder of the data sets.
        """
        kind = getattr(self._import_analysis(), self.draw_options_name)
        places = {"data_root": data_root} if "data_root" in {field.name for field in fields(kind)} else {}
        options: DrawOptions = kind(allow_missing=True, **places)
        return options

    def _import_analysis(self) -> Any:
        return import_module(f"analysis.{self.options_type.experiment}")


EXPERIMENTS = {
    experiment.options_type.experiment: experiment
    for experiment in (
        Experiment(Part3, "DrawOptions", "Part 3: five architectures"),
        Experiment(Part4, "DrawOptions", "Part 4: ReLU against the sigmoid"),
        Experiment(Part5, "Part5DrawOptions", "Part 5: learning rates and schedules"),
        Experiment(Xor, "DrawOptions", "XOR: noise on the training points"),
        Experiment(Mnist, "GalleryDrawOptions", "MNIST: logistic regression"),
        Experiment(Pooling, "GalleryDrawOptions", "Pooling and batch size"),
        Experiment(Grid, "GridDrawOptions", "The grid: combinations of settings"),
        Experiment(Search, "SearchDrawOptions", "The search: settings that Optuna suggests"),
    )
}
