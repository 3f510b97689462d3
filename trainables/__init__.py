"""One trial: its settings and data, how it trains, what must survive of it, and the worker that runs it.

Every process imports this package before MLflow, Ray, torch and matplotlib. So here is where `python -W error` and
`PYTHONWARNINGS=error` lose their effect: libraries warn of how they use each other, and a sweep must not end for that.
Other settings of warnings stay. (The tests turn warnings into errors by pytest's own means.)
"""

import os
import sys
import warnings


def is_error(option: str) -> bool:
    """Return whether an option such as `error::UserWarning` turns warnings into errors; actions may be abbreviated."""
    action = option.partition(":")[0].strip()
    return action != "" and "error".startswith(action)


if any(map(is_error, sys.warnoptions)):
    warnings.filters = [entry for entry in warnings.filters if entry[0] != "error"]
    sys.warnoptions[:] = [option for option in sys.warnoptions if not is_error(option)]
    inherited = os.environ.get("PYTHONWARNINGS", "").split(",")  # by Ray's processes, which import Ray first
    os.environ["PYTHONWARNINGS"] = ",".join(option for option in inherited if not is_error(option))
