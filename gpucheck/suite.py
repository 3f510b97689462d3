"""Checks that a GPU trains as the CPU does, and measures how fast: make gpu-check, with torch, NumPy and scikit-learn.

It needs no network, Ray or MLflow, and without a GPU it checks what a CPU can (small: `--small`). With Ray and MLflow
it also trains sweeps. Exit status 1 means that a check failed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from gpucheck import checks, sweeping, throughput
from gpucheck.checks import CHILD, CheckFailedError, Setting, SkippedError
from gpucheck.throughput import Row
from trainables.process import prepare_process

OUT = Path(__file__).resolve().parent.parent / "build" / "gpucheck"
# How many times as fast as one after another stacks are to train on a GPU: the best of HFTA's results is 15.1.
MLP_GOAL, MLP_GOAL_MEMBERS = 15.0, 64
CNN_GOAL = 3.0
GOAL_CNNS = ("cnn_3", "cnn_4", "cnn_5")


def run_check(name: str, check: Callable[[], str]) -> dict[str, str]:
    """Run a check and print its result, which is returned with its measure."""
    started = time.monotonic()
    try:
        status, measure = "passed", check()
    except SkippedError as error:
        status, measure = "skipped", str(error)
    except CheckFailedError as error:
        status, measure = "FAILED", str(error)
    except Exception as error:
        traceback.print_exc()
        status, measure = "FAILED", f"{type(error).__name__}: {error}"
    print(f"{status}: {name} ({time.monotonic() - started:.1f} s): {measure}", flush=True)
    return {"name": name, "status": status, "measure": measure}


def describe_machine() -> str:
    """Return the names of the device, of its driver's and PyTorch's versions, and of the processor."""
    software = f"torch {torch.__version__}, Python {platform.python_version()}"
    if not torch.cuda.is_available():
        return f"no GPU; {software}"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{torch.cuda.get_device_name()} ({memory:.0f} GiB), CUDA {torch.version.cuda}, {software}"


def check_goals(rows: Sequence[Row], setting: Setting) -> str:
    """Check that stacks are as much faster than single trials as they are to be on a GPU."""
    found = {(row.architecture, row.members): row.speedup for row in rows}
    best = {name: max(speedup for (n, _), speedup in found.items() if n == name) for name in {n for n, _ in found}}
    mlp = found.get(("mlp_1", MLP_GOAL_MEMBERS), best["mlp_1"])
    words = [f"mlp_1 {mlp:.1f}", *(f"{name} {best[name]:.1f}" for name in GOAL_CNNS if name in best)]
    measure = "times as fast as one after another: " + ", ".join(words)
    if setting.device.type == "cpu":
        raise SkippedError(f"there is no GPU; {measure}")
    short = [name for name in GOAL_CNNS if name in best and best[name] < CNN_GOAL]
    if mlp < MLP_GOAL or short:
        raise CheckFailedError(measure)
    return measure


def write_numbers(out: Path, found: dict[str, object]) -> None:
    """Write the numbers as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpucheck.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def write_results(out: Path, found: dict[str, object], rows: Sequence[Row]) -> None:
    """Write the numbers, the table and the figure, and say where they are."""
    write_numbers(out, found)
    (out / "throughput.md").write_text(throughput.make_table(rows), encoding="utf-8")
    drawn = throughput.draw_figure(rows, out / "throughput.png")
    print(
        f"written: {out}/gpucheck.json, throughput.md" + (", throughput.png" if drawn else "; no matplotlib, no figure")
    )


def main() -> int:
    """Run all checks and measurements, and return the exit status: 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few architectures and small stacks: for a CPU")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the numbers, the table and the figure")
    parser.add_argument("--only", default="", help="run only checks whose names hold this text, and measure nothing")
    parser.add_argument(CHILD, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare_process(1)  # as sweeps do
    if options.child is not None:
        checks.run_child(options.child)
        return 0
    print(describe_machine(), flush=True)
    setting = checks.make_setting(small=options.small)
    results = [
        run_check(name, partial(check, setting))
        for name, check in checks.list_checks(setting).items()
        if options.only in name
    ]
    if not options.only:
        size = throughput.SMALL if options.small else throughput.FULL
        machine, rows = throughput.measure(size, setting.device, lambda text: print(text, flush=True))
        print(throughput.make_table(rows))
        results.append(run_check("stacks reach their goals", lambda: check_goals(rows, setting)))
        found = {"machine": describe_machine(), "limits": vars(machine), "rows": [row.to_json() for row in rows]}
        write_results(options.out, {**found, "checks": results}, rows)
        results.append(run_check("64 mlp_1 in a sweep", lambda: sweeping.check_sweep(setting, small=options.small)))
        write_numbers(options.out, {**found, "checks": results})
    failed = [result["name"] for result in results if result["status"] == "FAILED"]
    print(f"{len(results)} checks, {len(failed)} failed" + "".join(f"; {name}" for name in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
