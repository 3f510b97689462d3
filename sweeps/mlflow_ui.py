"""The parts of MLflow's UI that it does not document and the project relies on: addresses, saved views, hidden tags.

Seen in MLflow 3.16 and 3.17, whose UI is a program in the browser. `make ui-test` opens what this module makes in a
browser. If it fails with another version: share a view by hand in the UI (button "Views"), and compare the tag
`mlflow.sharedViewState.…` that appears on the experiment, and the address in the browser, with what stands here. A
version that does not know saved views ignores the end of the address, and shows the experiment's runs.

Pure: nothing here asks a store.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

NOTE_TAG = "mlflow.note.content"  # Markdown that the UI shows on top of an experiment or run
KIND = {"mlflow.experimentKind": "custom_model_development"}  # a tag of experiments; the others are for language models
VIEW_PREFIX = "mlflow.sharedViewState."  # and a key: the tag of an experiment that holds a view
# And a key: a tag of a parent run that holds a section of its description. The UI hides tags that begin with "mlflow.".
SECTION_PREFIX = "mlflow.sweeps.section."
SOURCE_NAME, SOURCE_TYPE = "mlflow.source.name", "mlflow.source.type"  # the column "Source"
SOURCE_COMMIT, USER = "mlflow.source.git.commit", "mlflow.user"  # the columns "Version" and "User"
LINK_TAG = "mlflow.sweeps.link"  # of a parent run: the path of the address that shows what its last command was about
MAX_NOTE = 18_000  # characters of an experiment's description; MLflow takes 20,000 in a tag
MAX_RUN_TAG = 7_500  # characters of a run's tag; MLflow cuts after 8,000
MAX_RUNS_SHOWN = 100  # the UI loads so many runs at first, and its groups are of these
RESULTS = "results"  # the part of a metric's name that puts it into a folded section of the charts
BEGIN = "<!-- neural-sweeps: begin. Sweeps write this part anew; words outside of it stay as they are. -->"
END = "<!-- neural-sweeps: end -->"
# The order of charts: what is looked at first comes first.
CHART_ORDER = (
    *("val_accuracy", "test_set_accuracy", "train_loss", "gradient_norm", "train_accuracy", "train_set_accuracy"),
    "test_accuracy",
)
# The columns of a view of single runs.
VARIED = ("architecture", "learning_rate", "batch_size", "activation", "pooling", "optimizer", "epochs")
METRIC_CHARACTERS = re.compile(r"[^\w/. :-]")  # those that a metric's name cannot have


def make_view(
    *,
    name: str,
    condition: str,
    groups: Sequence[str],
    quantities: Sequence[str],
    parent_run_id: str,
    milliseconds: int,
    shows_test: bool = True,
) -> str:
    """Return the tag's value for a view: mean curves by group, with every run below its group.

    Args:
        name: Name in the list "Views".
        condition: Condition on runs, in MLflow's language.
        groups: Parameters whose values make the groups; none for a view of single runs.
        quantities: Metrics that have a chart.
        parent_run_id: Run that is hidden, as it has no curves.
        milliseconds: Time when the view was made, since 1970.
        shows_test: Whether the test accuracy has a column and a chart.
    """
    params = [f"params.`{group}`" for group in (*(groups or VARIED), "seed")]
    state = {
        "searchFilter": condition,
        # Of more runs than the UI loads, it loads whole seeds of all settings. Sorted by time, the parent run would
        # come along and make a group of its own.
        "orderByKey": "params.`seed`",
        "orderByAsc": True,
        "groupBy": make_grouping(groups) if groups else None,
        "useGroupedValuesInCharts": bool(groups),
        "runsHiddenMode": "SHOW_ALL",
        "runsVisibilityMap": {parent_run_id: False},
        "selectedColumns": [
            *params,
            *(f"metrics.`{metric}`" for metric in sort_quantities(quantities)[:3]),
            *(["metrics.`test_accuracy`"] if shows_test else []),
            "tags.`outcome`",
        ],
        "compareRunCharts": [
            *(make_chart(metric, "LINE") for metric in sort_quantities(quantities)),
            *([make_chart("test_accuracy", "BAR")] if shows_test else []),
        ],
        "compareRunSections": [make_chart_section("curves", shown=True), make_chart_section(RESULTS, shown=False)],
        "isAccordionReordered": True,  # the sections stay in this order
    }
    view = {"name": name, "createdAt": milliseconds, "updatedAt": milliseconds, "state": json.dumps(state)}
    return json.dumps(view)


def make_grouping(groups: Sequence[str]) -> dict[str, Any]:
    """Return the state of a view that averages runs with the same values of some parameters."""
    return {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "param", "groupByData": group} for group in groups],
    }


def sort_quantities(quantities: Sequence[str]) -> list[str]:
    """Return quantities in the order of their charts."""
    return sorted(quantities, key=lambda name: CHART_ORDER.index(name) if name in CHART_ORDER else len(CHART_ORDER))


def make_chart(metric: str, kind: str) -> dict[str, Any]:
    """Return a chart of a metric, a `LINE` over steps or a `BAR` for each group."""
    line = {
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
    return {
        "uuid": f"chart-{metric}",
        "type": kind,
        "runsCountToCompare": MAX_RUNS_SHOWN,
        "metricSectionId": "section-curves",
        "deleted": False,
        "isGenerated": kind == "LINE",  # a generated chart of a single point would be drawn as a bar, and the reverse
        "displayName": metric,
        "metricKey": metric,
        **(line if kind == "LINE" else {}),
    }


def make_chart_section(name: str, *, shown: bool) -> dict[str, Any]:
    """Return a section of charts, open or folded."""
    return {
        "uuid": f"section-{name}",
        "name": name,
        "display": shown,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
        "columns": 2,
    }


def make_view_path(experiment_id: str, key: str) -> str:
    """Return the part of an address after the server's that opens a view."""
    words = {"workflowType": "machine_learning", "viewStateShareKey": key, "compareRunsMode": "CHART"}
    return f"#/experiments/{experiment_id}/runs?{urlencode(words)}"


def make_list_path(experiment_ids: Sequence[str], condition: str) -> str:
    """Return the part of an address that lists runs of several experiments, which no view can do.

    They are sorted by a metric, as the UI folds runs into their parents where they are sorted by time.
    """
    words = {
        "experiments": json.dumps([*experiment_ids], separators=(",", ":")),
        "searchFilter": condition,
        "orderByKey": "metrics.`test_accuracy`",
        "orderByAsc": "false",
        "workflowType": "machine_learning",
    }
    return f"#/compare-experiments/s?{urlencode(words, quote_via=quote)}"


def make_runs_path(experiment_id: str) -> str:
    """Return the part of an address after the server's that opens the runs of an experiment."""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def make_run_path(experiment_id: str, run_id: str, page: str = "") -> str:
    """Return the part of an address that opens a run, or a page of it, such as `artifacts/report`."""
    return f"#/experiments/{experiment_id}/runs/{run_id}{f'/{page}' if page else ''}?workflowType=machine_learning"


def make_condition(settings: Mapping[str, Any], having: Sequence[str] = ()) -> str:
    """Return the condition for the runs of trials that have these parameters and have not diverged.

    Args:
        settings: Parameter → value; with None or () the parameter is not there.
        having: Parameters that may have any value, but must be there.
    """
    parts = ["tags.trial_id LIKE '%'", "tags.diverged_at_step IS NULL"]
    for name, value in settings.items():
        quoted = f'"{value}"' if "'" in str(value) else f"'{value}'"
        parts.append(f"params.{name} IS NULL" if value in (None, ()) else f"params.{name} = {quoted}")
    parts += [f"params.{name} IS NOT NULL" for name in having]
    return " AND ".join(parts)


def make_metric_name(text: str) -> str:
    """Return the name of a metric of a parent run, whose chart lies in a folded section."""
    return f"{RESULTS}/{METRIC_CHARACTERS.sub(' ', text.replace('/', ' '))}"


def read_own_part(note: str) -> str:
    """Return the part of a description that sweeps have written, without its marks."""
    _, begin, rest = note.partition(BEGIN)
    own, end, _ = rest.partition(END)
    return own.strip() if begin and end else ""


def replace_own_part(note: str, text: str) -> str:
    """Return a description with another text in the part that sweeps write; it is put first if there was none."""
    before, begin, rest = note.partition(BEGIN)
    _, end, after = rest.partition(END)
    part = f"{BEGIN}\n\n{text.strip()}\n\n{END}"
    return f"{before}{part}{after}" if begin and end else f"{part}\n\n{note}".strip()
