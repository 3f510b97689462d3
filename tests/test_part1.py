from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.part1 import Part1, count_built_parameters, main, parse_shape
from trainables.architectures import ARCHITECTURES, count_parameters
from trainables.errors import BadInputError

ROOT = Path(__file__).resolve().parent.parent
# Python would otherwise take UTF-8 in the locale C.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}

# Counted by hand from the reports' table of layers, for a 1×32×32 input.
PARAMETERS_32 = {"mlp_1": 33_130, "mlp_2": 35_498, "cnn_3": 11_106, "cnn_4": 13_522, "cnn_5": 8_346}


@pytest.mark.parametrize(("architecture", "parameters"), PARAMETERS_32.items())
def test_parameter_counts_on_32_pixels(architecture: str, parameters: int) -> None:
    counted = count_parameters(architecture, (1, 32, 32))
    assert counted.weights + counted.biases == parameters


@pytest.mark.parametrize(
    ("architecture", "parameters"), [("conv_pool", 34_538), ("conv_pool_valid", 22_058), ("logistic", 30_730)]
)
def test_parameter_counts_in_colour(architecture: str, parameters: int) -> None:
    assert sum(count_built_parameters(architecture, (3, 32, 32))) == parameters


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 32, 32), (3, 32, 32)])
def test_closed_formulas_equal_the_counts_of_built_networks(architecture: str, shape: tuple[int, int, int]) -> None:
    counted = count_parameters(architecture, shape)
    assert (counted.weights, counted.biases) == count_built_parameters(architecture, shape)
    assert eval(counted.formula.replace("·", "*")) == counted.weights + counted.biases


@pytest.mark.slow
def test_files_are_utf8_and_output_is_readable_in_an_ascii_locale(tmp_path: Path) -> None:
    command = [sys.executable, "analysis/part1.py", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **ASCII}, capture_output=True, check=True)
    assert "(1024·32 + 32)" in (tmp_path / "part1.csv").read_text(encoding="utf-8")
    assert "(1024·32 + 32)" in (tmp_path / "part1.md").read_text(encoding="utf-8")
    assert "33,130" in done.stdout.decode("ascii")


def test_the_table_of_parameter_counts_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Part1(out=tmp_path, inputs=("1x28x28",))) == 0
    rows = list(csv.DictReader((tmp_path / "part1.csv").read_text().splitlines()))
    assert [row["architecture"] for row in rows] == list(ARCHITECTURES)
    assert list(rows[0]) == ["architecture", "input", "weights", "biases", "parameters", "formula"]
    assert rows[0]["parameters"] == "25450"
    assert "900 steps an epoch, 13,500 in 15 epochs" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("text", ["32x32", "1x32", "axbxc", "1x0x3", ""])
def test_bad_shapes_are_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="write CHANNELSxHEIGHTxWIDTH"):
        parse_shape(text)


def test_an_input_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="input 1x8x8 does not fit"):
        main(Part1(out=tmp_path, inputs=("1x8x8",)))
