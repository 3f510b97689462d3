"""The output of scripts before anything trains, in this process, through the functions that the scripts call."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_sweep

from analysis import part3
from analysis.output import GalleryDrawOptions
from analysis.output import main as analysis_main
from sweeps.cli import parse
from sweeps.driver.options import RunOptions
from sweeps.driver.report import list_run_options
from sweeps.experiment import JOB_ADDRESS_VARIABLE
from sweeps.mnist import Mnist
from sweeps.part3 import Part3

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES", "SWEEPS_STORAGE", "SWEEPS_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)


def test_defaults_are_those_of_the_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["part3.py"])
    options, run_options = parse(Part3, RunOptions, None, "run")
    trials = options.sweep().trials()
    assert len(trials) == 50
    assert {t.architecture for t in trials} == {"mlp_1", "mlp_2", "cnn_3", "cnn_4", "cnn_5"}
    assert {(t.dataset, t.epochs, t.learning_rate, t.batch_size, t.optimizer) for t in trials} == {
        ("cifar10", 15, 0.01, 50, "adam")
    }
    assert run_options == RunOptions()


def test_quick_changes_the_defaults_but_no_given_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["part3.py", "--epochs", "2", "--quick"])
    options, _ = parse(Part3, RunOptions, None, "run")
    assert (options.dataset, options.seeds, options.epochs, options.quick) == ("digits", 3, 2, True)
    assert options.format_command("analysis") == f"python {ROOT}/analysis/part3.py --quick --epochs 2"


def test_printed_commands_repeat_the_given_options() -> None:
    options = Part3(dataset="fashion_mnist", architectures=("cnn_3", "mlp_1"), tracking_uri="sqlite:///my runs.db")
    assert options.format_command("sweeps") == (
        f"python {ROOT}/sweeps/part3.py --tracking-uri 'sqlite:///my runs.db' --dataset fashion_mnist "
        "--architectures cnn_3 mlp_1"
    )


def test_the_environment_names_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert Part3().tracking_uri == "http://tracking:5000"
    command = f"python {ROOT}/sweeps/part3.py --tracking-uri http://tracking:5000"
    assert Part3().format_command("sweeps") == command  # the shell that it is pasted into may lack the variable


def test_dry_run_prints_the_plan_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sweep(monkeypatch, "--quick", "--dry-run", "--max-concurrent", "1") == 0
    out = capsys.readouterr().out
    assert "part3: 15 trials, 0 done, 15 missing" in out
    assert "1 CPU and 0 GPUs per process, 1 process at once" in out
    assert list(tmp_path.iterdir()) == []


BAD = [
    (["--architectures", "cnn_9"], "unknown architecture 'cnn_9'; choose from mlp_1"),
    (["--architectures", "cnn_3", "cnn_3"], "a value for architecture twice"),
    (["--architectures"], "no value for architecture"),
    (["--dataset", "imagenet"], "unknown dataset 'imagenet'; choose from"),
    (["--seeds", "0"], "--seeds is 0; it must be a positive whole number"),
    (["--epochs", "-1"], "epochs is -1"),
    (["--batch-size", "0"], "batch size is 0"),
    (["--learning-rate", "-0.1"], "learning rate is -0.1"),
    (["--learning-rate", "nan"], "learning rate is nan"),
    (["--cpus-per-trial", "0"], "--cpus-per-trial is 0"),
    (["--cpus-per-trial", "4096"], "--cpus-per-trial is 4096, but no node has more than"),
    (["--gpus-per-trial", "-1"], "--gpus-per-trial is '-1'; it must be 0, a fraction from 0.01 to 1"),
    (["--gpus-per-trial", "1.5"], "--gpus-per-trial is '1.5'"),
    (["--gpus-per-trial", "64"], "--gpus-per-trial is 64 GPUs, but no node has"),
    (["--max-concurrent", "0"], "--max-concurrent is 0"),
    (["--storage", "/proc/nowhere"], "--storage /proc/nowhere cannot be written"),
    (["--tracking-uri", "mlruns"], "use sqlite:///FILE or http://HOST:PORT"),
    (["--tracking-uri", "http://127.0.0.1:9"], "the tracking store http://127.0.0.1:9"),
]


@pytest.mark.parametrize(
    ("words", "sentence"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_bad_input_ends_with_one_sentence_and_status_2(
    words: list[str],
    sentence: str,
    dry_run: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_sweep(monkeypatch, "--quick", *words, *(["--dry-run"] if dry_run else [])) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--seeds", "many"], ["--sedes", "3"], ["--seeds"], ["positional"]])
def test_options_that_cannot_be_parsed_end_with_status_2(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sweep(monkeypatch, *words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_names_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_sweep(monkeypatch, "--help") == 0
    out = capsys.readouterr().out
    selecting = ["dataset", "seeds", "epochs", "architectures", "learning-rate", "batch-size", "tracking-uri", "quick"]
    run_options = ["data-root", "cpus-per-trial", "gpus-per-trial", "max-concurrent", "storage", "dry-run", "address"]
    for option in selecting + run_options:
        assert f"--{option}" in out


def test_an_analysis_without_trials_names_the_command_that_trains_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["part3.py", "--quick", "--seeds", "1"])
    with pytest.raises(SystemExit) as exit_info:
        analysis_main(Part3, part3.draw, "Part 3.")
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert "there are no trials yet in" in err
    assert f"train them with: python {ROOT}/sweeps/part3.py --quick --seeds 1" in err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_too_many_gpus_with_cuda_visible_devices_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(100))))
    assert run_sweep(monkeypatch, "--quick", "--dry-run", "--gpus-per-trial", "64") == 2


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_dashboards_address_in_ray_address_gets_a_hint(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    assert run_sweep(monkeypatch, "--quick", *words) == 2
    assert "unset it and give --address http://10.0.0.1:8265" in capsys.readouterr().err


def test_the_command_to_continue_repeats_the_run_options() -> None:
    run_options = RunOptions(storage=Path("/scratch/x"), cpus_per_trial=2)
    command = Part3(quick=True, **Part3.quick_defaults).format_command("sweeps", list_run_options(run_options))
    assert command == f"python {ROOT}/sweeps/part3.py --quick --storage /scratch/x --cpus-per-trial 2"


def test_the_environment_names_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPS_STORAGE", "/srv/storage")
    monkeypatch.setenv("SWEEPS_DATA_ROOT", "/srv/data")
    monkeypatch.setattr(sys, "argv", ["part3.py"])
    _, run_options = parse(Part3, RunOptions, None, "run")
    assert (run_options.storage, run_options.data_root) == (Path("/srv/storage"), Path("/srv/data"))
    assert list_run_options(run_options) == ["--data-root", "/srv/data", "--storage", "/srv/storage"]
    monkeypatch.setenv(JOB_ADDRESS_VARIABLE, "http://127.0.0.1:8265")
    assert list_run_options(run_options) == []  # the cluster gives the variables to the next job, too


def test_a_job_prints_commands_for_the_computer_that_submitted_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_ADDRESS_VARIABLE, "http://127.0.0.1:8265")
    assert Part3(seeds=2).format_command("sweeps") == (
        "python sweeps/part3.py --seeds 2 --address http://127.0.0.1:8265"
    )
    assert Part3(seeds=2).format_command("analysis") == (
        "MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python analysis/part3.py --seeds 2"
    )


def test_sigterm_stops_a_sweep_that_a_shell_script_started_in_the_background() -> None:
    """Such a process starts with SIGINT ignored, and a sweep turns SIGTERM into SIGINT."""
    wait = "lambda: print(1, flush=True) or time.sleep(30)"
    code = f"import time; from sweeps.cli import run_to_exit_status; exit(run_to_exit_status({wait}))"
    words = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        process.terminate()
        assert process.wait() == 130


def test_a_tilde_is_the_home_folder_in_options_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SWEEPS_STORAGE", "~/storage")
    monkeypatch.setenv("SWEEPS_DATA_ROOT", "~/data")
    monkeypatch.setattr(sys, "argv", ["mnist.py"])
    _, run_options = parse(Mnist, RunOptions, None, "run")
    assert (run_options.storage, run_options.data_root) == (Path("/home/me/storage"), Path("/home/me/data"))
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--storage=~/x", "--data-root=~"])
    _, run_options = parse(Mnist, RunOptions, None, "run")
    assert (run_options.storage, run_options.data_root) == (Path("/home/me/x"), Path("/home/me"))
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--out=~/figures", "--data-root", "~no-such-user/x"])
    _, draw_options = parse(Mnist, GalleryDrawOptions, None, "draw")
    assert (draw_options.out, draw_options.data_root) == (Path("/home/me/figures"), Path("~no-such-user/x"))
