"""Searches as studies of Optuna: its importance of parameters, and a database for its dashboard."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeps.rounds import History
from sweeps.sampling import Suggestion, make_optuna_trial, make_study
from sweeps.space import Range
from trainables.commands import hide_password
from trainables.errors import BadInputError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

MIN_SUGGESTIONS = 10  # trained at full length; with fewer, an importance would be one or two of them


def list_trained(history: History) -> list[Suggestion]:
    """Return the suggestions that were trained at full length, those that diverged or are stuck among them."""
    return [s for s in history.suggestions if s.score is not None and not s.repeats]


def compute_importances(history: History) -> dict[str, float]:
    """Return Optuna's importance in % of each parameter in which a search has a choice; empty if it has trained few.

    It is Optuna's default, PED-ANOVA: how well a parameter tells the best tenth of the suggestions from the others.
    """
    trained = list_trained(history)
    varied = [name for name, domain in history.space.items() if isinstance(domain, Range) or len(domain) > 1]
    if len(trained) < MIN_SUGGESTIONS or len({s.score for s in trained}) < 2 or len(varied) < 2:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the evaluator is not final in some versions
        evaluator = PedAnovaImportanceEvaluator()
        found = get_param_importances(make_study(history.space, trained), evaluator=evaluator, params=varied)
    return {name: 100 * found[name] for name in varied}


def export_studies(uri: str, dataset: str, histories: Sequence[History]) -> None:
    """Put each search as a study into a database, which may hold others.

    Args:
        uri: The database, as SQLAlchemy names it.
        dataset: The name of the data set.
        histories: The searches.

    Raises:
        BadInputError: The database cannot be used, or has a study of the same name.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        write_studies(optuna.storages.RDBStorage(uri), uri, dataset, histories)
    except BadInputError:
        raise
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError, optuna.exceptions.OptunaError) as error:
        reason = hide_password((str(error).splitlines() or [""])[0])
        raise BadInputError(
            f"--export-study cannot write to {hide_password(uri)} ({reason}); give a database such as sqlite:///study.db"
        ) from None


def write_studies(storage: BaseStorage, uri: str, dataset: str, histories: Sequence[History]) -> None:
    """Write the studies, none if one of them is there already."""
    import optuna

    names = [f"search-{dataset}-{history.folder.rpartition('/')[2][:8]}" for history in histories]
    if there := sorted({study.study_name for study in storage.get_all_studies()} & {*names}):
        raise BadInputError(
            f"{hide_password(uri)} has a study {there[0]} already; give --export-study another database, or delete the "
            "study there"
        )
    for name, history in zip(names, histories, strict=True):
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
        study.set_user_attr("seed", history.seed)
        study.set_user_attr("score", "validation accuracy (%)")
        study.add_trials([make_optuna_trial(history.space, suggestion) for suggestion in history.suggestions])
