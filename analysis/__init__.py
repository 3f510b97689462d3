"""Analyses: figures, tables and exports of the reports, made from finished trials.

Figures must not depend on the user's settings of matplotlib, such as the backend of a notebook or a `matplotlibrc`. So
this package is the first to import matplotlib. Its modules import it for types only, except for `figures`, which they
import through this package.
"""

import os

import trainables  # noqa: F401 (first, as it sets up how warnings are treated)

os.environ["MPLBACKEND"] = "agg"  # figures are saved, and never shown

import matplotlib

matplotlib.rcdefaults()
