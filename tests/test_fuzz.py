"""Bad input, drawn at random but the same in every run: command lines, data files and downloads.

Every case succeeds or is refused in one clear sentence, never in another exception, and changes no file. `CASES` holds
the number of cases of each kind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import gzip
import hashlib
import http.server
import inspect
import io
import os
import pickle
import random
import shlex
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from test_datasets import accept_files, idx, make_cifar_archive, write_idx_files

from analysis.grid import GridDrawOptions
from analysis.output import DrawOptions, GalleryDrawOptions
from analysis.part5 import Part5DrawOptions
from sweeps.cli import parse, run_to_exit_status
from sweeps.driver.options import RunOptions
from sweeps.driver.resources import Node
from sweeps.driver.run import allocate_as_requested
from sweeps.experiment import SweepOptions, format_options
from sweeps.grid import Grid
from sweeps.mnist import Mnist
from sweeps.part3 import Part3
from sweeps.part4 import Part4
from sweeps.part5 import Part5
from sweeps.pooling import Pooling
from sweeps.sweep import MAX_TRIALS, Sweep
from sweeps.xor import Xor
from trainables import datasets, idx_files, sources
from trainables.architectures import ACTIVATIONS, ARCHITECTURES
from trainables.errors import BadInputError, check_positive
from trainables.trial import IMAGE_DATASETS, OPTIMIZERS, Trial

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),  # urllib leaves sockets to the collector
]
ROOT = Path(__file__).parent.parent
NO_SERVER = "http://127.0.0.1:9/"
Load = Callable[[], datasets.Dataset]

# Command lines

COMMAND_LINES = 16  # drawn for each script
SCRIPTS: dict[str, tuple[type[SweepOptions], type[Any]]] = {
    "sweeps/part3": (Part3, RunOptions),
    "sweeps/part4": (Part4, RunOptions),
    "sweeps/part5": (Part5, RunOptions),
    "sweeps/xor": (Xor, RunOptions),
    "sweeps/mnist": (Mnist, RunOptions),
    "sweeps/pooling": (Pooling, RunOptions),
    "sweeps/grid": (Grid, RunOptions),
    "analysis/part3": (Part3, DrawOptions),
    "analysis/part4": (Part4, DrawOptions),
    "analysis/part5": (Part5, Part5DrawOptions),
    "analysis/xor": (Xor, DrawOptions),
    "analysis/mnist": (Mnist, GalleryDrawOptions),
    "analysis/pooling": (Pooling, GalleryDrawOptions),
    "analysis/grid": (Grid, GridDrawOptions),
}
GOOD_NUMBERS = ["1", "2", "3"]
WHOLE = ["0", "-1", "1000000", "1000001", "1" + "0" * 9, "1" + "0" * 30, "9" * 400, "-" + "9" * 400, " 3 ", "1_0", "٣"]
FRACTIONS = ["0.5", "-0.0", "nan", "-nan", "inf", "-inf", "1e400", "-1e400", "1e-400", "5e-324", "1e38", "1e308", "1e3"]
NO_NUMBERS = ["", " ", "many", "None", "True", "1,5", "0x10", "²", "½", "3seeds", "1 2", "$((1))", "9" * 5000]
GOOD_NAMES = [*IMAGE_DATASETS, *ARCHITECTURES, *ACTIVATIONS, *OPTIMIZERS, "max", "avg", "val_accuracy", "seed"]
BAD_NAMES = [
    *("", " ", "CIFAR10", "cnn_3 ", "mlp_1,mlp_2", "xor", "None", "x" * 5000, "é", "数", "\u202e", "\udcff", "a\nb"),
    *("\x1b[31m", "[/red]", "[bold]", "%s", "{}", "{0}", "\\", "'", '"', "$HOME", "*", "../..", "--", "-", "-x"),
]  # fmt: skip
SHARES = ["0", "0.25", "1", "auto", "mlp_1=0.1", "cnn_3=auto", "mlp_1=", "=0.5", "mlp_9=1", "0.25 mlp_1=0.1"]
PATHS = [
    *("", ".", "..", "new", "new/deep", "a file", "a file/below", "/dev/null", "/proc/no", "/", "~", "a b", "a\nb"),
    *("x" * 300, "x/" * 3000, "-x", "--x", "\udcff", "é", "[/x]", "sqlite:///new.db", "sqlite:///a file", "http://h:1"),
]  # fmt: skip
STRAY = ["--sedes", "--", "-", "", "-h", "--help", "--command.seeds", "--quick=1", "positional", "—seeds"]  # fmt: skip


def values(name: str, kind: str) -> st.SearchStrategy[str]:
    """Draw values for an option of this name and type: mostly plausible ones, sometimes any text."""
    if name == "gpus_per_trial":
        meant = st.sampled_from(SHARES)
    elif name == "pack":
        meant = st.sampled_from(["auto", *GOOD_NUMBERS]) | st.sampled_from(WHOLE)
    elif "int" in kind:
        meant = st.sampled_from(GOOD_NUMBERS) | st.sampled_from(WHOLE) | st.integers().map(str)
    elif "float" in kind:
        meant = st.sampled_from(GOOD_NUMBERS) | st.sampled_from(WHOLE + FRACTIONS) | st.floats().map(str)
    elif "Path" in kind:
        meant = st.sampled_from(PATHS)
    else:
        meant = st.sampled_from(GOOD_NAMES) | st.sampled_from(BAD_NAMES)
    anything = st.text(st.characters(exclude_characters="\0"), max_size=20)  # no argument can hold a NUL
    other = st.sampled_from(BAD_NAMES + WHOLE + FRACTIONS + NO_NUMBERS + PATHS)
    return st.integers(0, 9).flatmap(lambda chance: [anything, other][chance] if chance < 2 else meant)


@st.composite
def command_lines(draw: st.DrawFn, classes: tuple[type, ...]) -> list[str]:
    """Draw up to three options, perhaps one of them twice, at times with too few or too many values or a stray word."""
    fields = [field for group in classes for field in dataclasses.fields(group)]
    words: list[str] = []
    for field in draw(st.lists(st.sampled_from(fields), min_size=1, max_size=3)):
        flag, kind = f"--{field.name.replace('_', '-')}", str(field.type)
        usual = 0 if kind == "bool" else draw(st.integers(0, 4)) if "tuple" in kind else 1
        count = draw(st.sampled_from([usual] * 18 + [0, 2]))
        drawn = draw(st.lists(values(field.name, kind), min_size=count, max_size=count))
        words += [f"{flag}={drawn[0]}"] if len(drawn) == 1 and draw(st.booleans()) else [flag, *drawn]
    stray = draw(st.sampled_from([None] * 99 + STRAY))
    return words if stray is None else [*words, stray]


def check_before_training(options_class: type[SweepOptions], other_class: type[Any]) -> int:
    """Check all that a script checks before it opens the store, and its command to continue if the trials are good."""
    verb = "run" if other_class is RunOptions else "draw"
    options, other_options = parse(options_class, other_class, None, verb)
    sweep = options.first_stage()
    trials = sweep.trials()
    if hasattr(other_options, "check"):
        other_options.check()
    assert 0 < len(trials) <= MAX_TRIALS
    assert len(set(sweep.labels().values())) == len(trials)
    if isinstance(other_options, RunOptions):
        allocate_as_requested(trials, other_options, [Node(cpus=2, gpus=1)])
        sys.argv = shlex.split(options.format_command("sweeps", format_options(other_options, RunOptions())))[1:]
        # The command to continue must mean the same.
        assert parse(options_class, other_class, None, verb) == (options, other_options)
    return 0


def run_script(options_class: type[SweepOptions], other_class: type[Any], words: list[str]) -> tuple[int, str]:
    """Run a script with these words up to where it would train or draw, and return its exit status and output."""
    err = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err), contextlib.redirect_stdout(err):
        patch.setattr(sys, "argv", ["script.py", *words])
        try:
            status = run_to_exit_status(lambda: check_before_training(options_class, other_class))
        except SystemExit as end:  # from the parser
            status = int(end.code or 0)
    return status, err.getvalue()


def hash_files(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, by its path."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("script", SCRIPTS)
def test_any_command_line_is_accepted_or_refused_in_one_sentence(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "getsource", functools.cache(inspect.getsource))  # it takes most of the parser's time
    options_class, other_class = SCRIPTS[script]
    (tmp_path / "a file").write_text("mine")
    before = hash_files(tmp_path)
    statuses = set()

    @seed(list(SCRIPTS).index(script))
    @settings(
        max_examples=COMMAND_LINES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines((options_class, other_class)))
    def check(words: list[str]) -> None:
        status, text = run_script(options_class, other_class, words)
        statuses.add(status)
        assert status in (0, 2)
        assert "Traceback" not in text
        if status == 2 and not text.startswith("error: "):  # the parser puts its message in a box
            assert "--help" in text
        elif status == 2:
            assert text.count("\n") == 1
            assert len(text) > len("error: \n")
        assert hash_files(tmp_path) == before

    check()
    assert statuses == {0, 2}


ABSURD = [
    (Part3, ["--seeds", "1" + "0" * 9], "--seeds is 1000000000; it must be 100,000 at most"),
    (Part3, ["--seeds", "9" * 400], "it must be 100,000 at most"),
    (Part3, ["--seeds", "100000"], "has 500,000 combinations of its axes' values; 100,000 at most"),
    (Part3, ["--epochs", "1" + "0" * 12], "epochs is 1000000000000; it must be 1,000,000 at most"),
    (Part3, ["--batch-size", "1" + "0" * 30], "it must be 1,000,000 at most"),
    (Part3, ["--learning-rate", "1e39"], "learning rate is 1e+39; it must be 1,000,000 at most"),
    (Xor, ["--sigmas", "0", "1e308"], "noise sigma is 1e+308; it must be a number from 0 to 1,000,000"),
    (Xor, ["--seeds", "1" + "0" * 12], "--seeds is 1000000000000; it must be 100,000 at most"),
    (Xor, ["--sigmas", "0.0", "-0.0"], "a value for noise_sigma twice"),
    (Mnist, ["--learning-rates", "0.1", "0.1"], "a value for learning_rate twice"),
    (Mnist, ["--learning-rates"], "no value for learning_rate"),
    (Pooling, ["--batch-sizes", "10", "10"], "a value for batch_size twice"),
    (Part3, ["--gpus-per-trial", "5e-324"], "it must be 0, a fraction from 0.01 to 1, a whole number of GPUs, or auto"),
    (Part3, ["--storage", "a\nb/" + "x" * 300], "cannot be written"),
    (Part3, ["--dataset", "x" * 100_000], "…; choose from cifar10"),
]


@pytest.mark.parametrize(
    ("options_class", "words", "sentence"), ABSURD, ids=lambda value: getattr(value, "__name__", str(value)[:40])
)
def test_absurd_values_are_refused_at_once(options_class: type[SweepOptions], words: list[str], sentence: str) -> None:
    status, text = run_script(options_class, RunOptions, words)
    assert (status, text.count("\n"), text[:7]) == (2, 1, "error: ")
    assert sentence in text


def test_nearly_equal_learning_rates_are_different_trials() -> None:
    trials = Mnist(learning_rates=(0.12345678, 0.12345679)).sweep().trials()
    assert len(trials) == 3


def test_negative_zero_is_zero() -> None:
    ids = {Xor(sigmas=(sigma,), seeds=1).sweep().trials()[0].id for sigma in (0.0, -0.0)}
    assert len(ids) == 1


def test_the_number_of_combinations_is_checked_before_they_are_listed() -> None:
    with pytest.raises(BadInputError, match="1,000,000,000,000 combinations"):
        Sweep(name="x", axes={"seed": range(10**12)}, fixed={})


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), 0, -1, 0.5])
def test_the_error_for_a_number_out_of_range_is_short(value: float) -> None:
    with pytest.raises(BadInputError, match="it must be") as refusal:
        check_positive("it", value, whole=True, maximum=10)
    assert len(str(refusal.value)) < 200


def test_a_seed_that_numpy_does_not_take_is_refused() -> None:
    with pytest.raises(BadInputError, match="seed is 4294967296"):
        Trial(dataset="digits", architecture="mlp_1", learning_rate=0.01, epochs=1, seed=2**32)


PROCESSES = [
    ["sweeps/grid.py", "--poolings", os.fsdecode(b"\xff\n[/red]")],
    ["sweeps/part5.py", "--milestones", "nan"],
    ["analysis/xor.py", "--sigmas"],
]


@pytest.mark.parametrize("words", PROCESSES, ids=lambda words: " ".join(words).encode("ascii", "replace").decode())
def test_a_process_ends_with_status_2_and_no_traceback(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    completed = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    assert completed.returncode == 2
    assert completed.stderr.strip()
    assert "Traceback" not in completed.stderr
    assert list(tmp_path.iterdir()) == []


# Data files

FLIPS, CUTS = 80, 40  # of each of the four files, in addition to every bit and place of its header and trailer
HEADER, TRAILER = 10, 8  # bytes of a gzip file


def flip(content: bytes, bit: int) -> bytes:
    """Return the bytes with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def choose_bits(size: int, count: int) -> list[int]:
    """Choose every bit of a gzip file's header and trailer, and at most `count` bits in between."""
    edges, between = (
        {*range(8 * HEADER), *range(8 * (size - TRAILER), 8 * size)},
        range(8 * HEADER, 8 * (size - TRAILER)),
    )
    return sorted(edges | set(random.Random(size).sample(between, min(count, len(between)))))


def choose_places(size: int, count: int) -> list[int]:
    """Choose places to cut a gzip file: all in its header and trailer, and at most `count` in between."""
    edges, between = {*range(HEADER), *range(size - TRAILER, size)}, range(HEADER, size - TRAILER)
    return sorted(edges | set(random.Random(size).sample(between, min(count, len(between)))))


def are_equal(one: datasets.Dataset, other: datasets.Dataset) -> bool:
    """Return whether two data sets are equal to the last bit."""
    arrays = [f"{part}_{kind}" for part in ("train", "val", "test") for kind in ("images", "labels")]
    return one.checksum == other.checksum and all(
        getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in arrays
    )


def find_refusal(
    load: Load, original: datasets.Dataset, folder: Path, *, may_leave: tuple[str, ...] = ()
) -> str | None:
    """Load data, and return the sentence that refuses them, or None if they equal the original.

    No file of the folder may change. Only locks, and files with a part of `may_leave` in their names, may be added.
    """
    before = hash_files(folder)
    try:
        assert are_equal(load(), original)
        sentence = None
    except BadInputError as error:
        sentence = str(error)
        assert "\n" not in sentence
    after = hash_files(folder)
    assert {name: after.get(name) for name in before} == before
    assert all(any(part in name for part in (".lock", *may_leave)) for name in after.keys() - before.keys())
    return sentence


@pytest.fixture
def idx_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, datasets.Dataset]:
    """Write four small files in MNIST's format, make all other sources absent, and return the folder and its data."""
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    for source in (torchvision.datasets.MNIST, torchvision.datasets.FashionMNIST):
        monkeypatch.setattr(source, "mirrors", [NO_SERVER])
    folder = tmp_path / "data"
    write_idx_files(folder, train=100, test=20)
    accept_files(folder, monkeypatch)
    return folder, datasets.load_dataset("mnist", folder)


@pytest.mark.parametrize("file", idx_files.IDX_FILES)
def test_a_flipped_bit_of_a_gz_file_is_noticed_or_harmless(
    file: str, idx_folder: tuple[Path, datasets.Dataset]
) -> None:
    folder, original = idx_folder
    path = folder / f"{file}.gz"
    content = path.read_bytes()
    unnoticed = []
    for bit in choose_bits(len(content), FLIPS):
        path.write_bytes(flip(content, bit))
        sentence = find_refusal(lambda: datasets.load_dataset("mnist", folder), original, folder)
        if sentence is None:
            unnoticed.append(bit)
        else:
            assert f"{path} is not a readable gzipped IDX file" in sentence
    # Only the header's text flag, reserved flags, time, level and system, and a few bits of padding make no difference.
    assert {bit // 8 for bit in unnoticed} >= {4, 5, 6, 7, 8, 9}
    assert len([bit for bit in unnoticed if bit >= 8 * HEADER]) < 8


@pytest.mark.parametrize("file", idx_files.IDX_FILES)
def test_a_truncated_gz_file_is_refused(file: str, idx_folder: tuple[Path, datasets.Dataset]) -> None:
    folder, original = idx_folder
    path = folder / f"{file}.gz"
    content = path.read_bytes()
    for place in choose_places(len(content), CUTS):
        path.write_bytes(content[:place])
        sentence = find_refusal(lambda: datasets.load_dataset("mnist", folder), original, folder)
        assert f"{path} is not a readable gzipped IDX file" in str(sentence)


IMAGES, LABELS = np.zeros((100, 28, 28), np.uint8), np.arange(100, dtype=np.uint8) % 10


def make_raw_idx(magic: bytes, *shape: int, body: bytes = b"") -> bytes:
    return gzip.compress(magic + struct.pack(f">{len(shape)}I", *shape) + body)


def make_labels_with_a_rare_class() -> np.ndarray:
    labels = LABELS.copy()
    labels[9] = 0
    return labels


# (mistake, content of the file, part of the sentence that refuses it)
BAD_IMAGES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "is not a readable gzipped IDX file"),
    ("one byte", b"\x1f", "is not a readable gzipped IDX file"),
    ("text", b"<html>404</html>", "is not a readable gzipped IDX file"),
    ("not compressed", gzip.decompress(idx(IMAGES)), "is not a readable gzipped IDX file"),
    ("compressed twice", gzip.compress(idx(IMAGES)), "is not a readable gzipped IDX file"),
    ("junk at the end", idx(IMAGES) + b"junk", "is not a readable gzipped IDX file"),
    ("itself at the end", idx(IMAGES) * 2, "is not a readable gzipped IDX file"),
    ("a byte more", gzip.compress(gzip.decompress(idx(IMAGES)) + b"\0"), "is not a readable gzipped IDX file"),
    ("a byte less", gzip.compress(gzip.decompress(idx(IMAGES))[:-1]), "is not a readable gzipped IDX file"),
    ("no content", gzip.compress(b""), "is not a readable gzipped IDX file"),
    ("half a magic number", gzip.compress(b"\0\0"), "is not a readable gzipped IDX file"),
    ("no shape", make_raw_idx(b"\0\0\x08\x03"), "is not a readable gzipped IDX file"),
    ("wrong magic", make_raw_idx(b"\1\0\x08\x03", 1, 28, 28, body=bytes(784)), "is not a readable gzipped IDX file"),
    *(
        (
            f"type {kind:x}",
            make_raw_idx(bytes([0, 0, kind, 3]), 1, 1, 1, body=bytes(8)),
            "is not a readable gzipped IDX",
        )
        for kind in (0, 7, 9, 0xB, 0xC, 0xD, 0xE, 0xFF)
    ),
    ("rank 0", make_raw_idx(b"\0\0\x08\0", body=b"\0"), "is not a readable gzipped IDX file"),
    ("rank 65", make_raw_idx(b"\0\0\x08\x41", *[1] * 65, body=b"\0"), "is not a readable gzipped IDX file"),
    ("rank 255", make_raw_idx(b"\0\0\x08\xff", *[1] * 255, body=b"\0"), "is not a readable gzipped IDX file"),
    ("2**64 pixels", make_raw_idx(b"\0\0\x08\x04", *[2**16] * 4), "is not a readable gzipped IDX file"),
    (
        "all of 2**96",
        make_raw_idx(b"\0\0\x08\x03", *[2**32 - 1] * 3, body=bytes(9)),
        "is not a readable gzipped IDX file",
    ),
    ("no image", idx(IMAGES[:0]), "expected one label an image"),
    ("one too few", idx(IMAGES[1:]), "expected one label an image"),
    ("one too many", idx(np.zeros((101, 28, 28))), "expected one label an image"),
    ("of other size", idx(np.zeros((100, 14, 56))), "images of shape (1, 28, 28)"),
    ("too small", idx(np.zeros((100, 2, 2))), "images of shape (1, 28, 28)"),
    ("without pixels", idx(np.zeros((100, 0, 0))), "images of shape (1, 28, 28)"),
    ("of colour", idx(np.zeros((100, 3, 28, 28))), "images of shape (1, 28, 28)"),
    ("flat", idx(np.zeros((100, 784))), "images of shape (1, 28, 28)"),
    ("labels", idx(LABELS), "images of shape (1, 28, 28)"),
]
BAD_LABELS: list[tuple[str, bytes, str]] = [
    ("images", idx(IMAGES), "expected one label an image"),
    ("one too few", idx(LABELS[1:]), "expected one label an image"),
    ("one too many", idx(np.append(LABELS, 0)), "expected one label an image"),
    ("none", idx(LABELS[:0]), "expected one label an image"),
    ("in a column", idx(LABELS[:, None]), "expected one label an image"),
    ("ten", idx(np.append(LABELS[:-1], 10)), "not all 0 to 9"),
    ("255", idx(np.append(LABELS[:-1], 255)), "not all 0 to 9"),
    ("all ten", idx(np.full(100, 10)), "not all 0 to 9"),
    ("all zero", idx(np.zeros(100)), "only 0 of some class"),
    ("all nine", idx(np.full(100, 9)), "only 0 of some class"),
    ("few of a class", idx(make_labels_with_a_rare_class()), "only 9 of some class"),
]


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        *(pytest.param("train-images-idx3-ubyte", *case, id=f"images {name}") for name, *case in BAD_IMAGES),
        *(pytest.param("train-labels-idx1-ubyte", *case, id=f"labels {name}") for name, *case in BAD_LABELS),
    ],
)
def test_wrong_content_is_refused(
    file: str,
    content: bytes,
    expected: str,
    idx_folder: tuple[Path, datasets.Dataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The content is that of the known files here, so that what the arrays hold is checked as well."""
    folder, original = idx_folder
    (folder / f"{file}.gz").write_bytes(content)
    accept_files(folder, monkeypatch)
    for pipeline in (None, "unit", "colour"):
        sentence = find_refusal(lambda p=pipeline: datasets.load_dataset("mnist", folder, p), original, folder)
        assert expected in str(sentence)
        assert "mnist" in str(sentence) or file in str(sentence)


def make_folder(path: Path) -> None:
    path.mkdir()


IN_ITS_PLACE: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda path: None, "no file"),
    "a folder": (make_folder, "no file"),
    "a dangling link": (lambda path: path.symlink_to("nowhere"), "no file"),
    "a link to itself": (lambda path: path.symlink_to(path), "no file"),
    "a pipe": (os.mkfifo, "no file"),
    "an unreadable file": (lambda path: path.symlink_to("/proc/self/mem"), "is not a readable gzipped IDX file"),
}


@pytest.mark.parametrize("place", IN_ITS_PLACE)
@pytest.mark.parametrize("file", idx_files.IDX_FILES)
def test_anything_but_a_readable_file_is_named(
    file: str, place: str, idx_folder: tuple[Path, datasets.Dataset]
) -> None:
    folder, original = idx_folder
    put, expected = IN_ITS_PLACE[place]
    path = folder / f"{file}.gz"
    path.unlink()
    put(path)
    sentence = str(find_refusal(lambda: datasets.load_dataset("mnist", folder), original, folder))
    assert expected in sentence
    assert path.name in sentence
    assert str(folder) in sentence


BAD_ROOTS = ["a file", "a file/below", "x" * 300, "x/" * 3000, "/proc/nowhere", "/dev/null", "a\nb/" + "x" * 300]


@pytest.mark.parametrize("name", IMAGE_DATASETS[:3])
@pytest.mark.parametrize("root", BAD_ROOTS)
def test_an_impossible_data_root_is_refused(
    name: str, root: str, idx_folder: tuple[Path, datasets.Dataset], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", NO_SERVER)
    (tmp_path / "a file").write_text("mine")
    with pytest.raises(BadInputError, match=f"no usable {name} files: looked in "):
        datasets.load_dataset(name, Path(root))
    assert (tmp_path / "a file").read_text() == "mine"


def test_labels_that_are_not_fashion_mnists_are_named(idx_folder: tuple[Path, datasets.Dataset]) -> None:
    folder, original = idx_folder
    sentence = str(find_refusal(lambda: datasets.load_dataset("fashion_mnist", folder), original, folder))
    path = folder / "train-images-idx3-ubyte.gz"
    assert f"{folder} ({path} is a file of mnist, not train-images-idx3-ubyte of fashion_mnist)" in sentence


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damaged_fashion_mnist_is_refused(
    damage: str, idx_folder: tuple[Path, datasets.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = idx_folder
    accept_files(folder, monkeypatch, "fashion_mnist")
    original = datasets.load_dataset("fashion_mnist", folder)
    for file in idx_files.IDX_FILES:
        path = folder / f"{file}.gz"
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(flip(content, 8 * middle) if damage == "flip" else content[:middle])
        assert f"{path} is not a" in str(
            find_refusal(lambda: datasets.load_dataset("fashion_mnist", folder), original, folder)
        )
        path.write_bytes(content)


# Downloads


class Server(http.server.ThreadingHTTPServer):
    """A server on the loopback interface that answers each path with a body, or by a function of the handler."""

    answers: dict[str, bytes | Callable[[http.server.BaseHTTPRequestHandler], None]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that hangs up."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        answer = self.server.answers.get(self.path)
        if answer is None:
            self.send_error(404)
        elif callable(answer):
            answer(self)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def running_server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    # This closes the sockets that urllib leaves open after an HTTP error, while this module's warning filter holds.
    gc.collect()


@pytest.fixture
def server(running_server: Server) -> Server:
    running_server.answers = {}
    return running_server


ARCHIVE = "cifar-10-python.tar.gz"


@dataclasses.dataclass
class Cifar:
    """A small CIFAR-10 that torchvision takes for the real one: its archive, the data root, and its files' names."""

    archive: bytes
    root: Path
    files: list[str]
    patch: pytest.MonkeyPatch

    def load(self) -> datasets.Dataset:
        return datasets.load_dataset("cifar10", self.root)

    def unpack(self) -> None:
        self.root.mkdir(exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(self.archive)) as archive:
            archive.extractall(self.root, filter="data")

    def load_original(self) -> datasets.Dataset:
        self.unpack()
        data = self.load()
        shutil.rmtree(self.root)
        self.root.mkdir()
        return data

    def accept_checksums(self, archive: bytes, md5s: dict[str, str]) -> None:
        """Make torchvision take these checksums for the right ones."""
        source = torchvision.datasets.CIFAR10
        self.patch.setattr(source, "tgz_md5", hashlib.md5(archive).hexdigest())
        self.patch.setattr(source, "train_list", [[f"data_batch_{i}", md5s[f"data_batch_{i}"]] for i in range(1, 6)])
        self.patch.setattr(source, "test_list", [["test_batch", md5s["test_batch"]]])
        self.patch.setattr(source, "meta", {**source.meta, "md5": md5s["batches.meta"]})


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cifar:
    archive, md5s, _ = make_cifar_archive()
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", NO_SERVER + ARCHIVE)
    made = Cifar(archive, tmp_path / "data", list(md5s), monkeypatch)
    made.accept_checksums(archive, md5s)
    return made


ARCHIVE_FLIPS, ARCHIVE_CUTS, BATCH_FLIPS, BATCH_CUTS = 40, 20, 6, 5


def test_a_damaged_archive_is_named_and_left_alone(cifar: Cifar) -> None:
    original = cifar.load_original()
    path = cifar.root / ARCHIVE
    content = cifar.archive
    damaged = [flip(content, bit) for bit in choose_bits(len(content), ARCHIVE_FLIPS)]
    damaged += [content[:place] for place in choose_places(len(content), ARCHIVE_CUTS)]
    damaged += [content + b"junk", content + b"\0", content * 2]
    for archive in damaged:
        path.write_bytes(archive)
        sentence = str(find_refusal(cifar.load, original, cifar.root))
        assert f"{path} (damaged)" in sentence
        assert path.read_bytes() == archive


@pytest.mark.parametrize("number", range(7))
def test_a_damaged_batch_is_named_and_left_alone(number: int, cifar: Cifar) -> None:
    original = cifar.load_original()
    cifar.unpack()
    path = cifar.root / "cifar-10-batches-py" / cifar.files[number]
    content = path.read_bytes()
    generator = random.Random(number)
    damaged = [flip(content, bit) for bit in generator.sample(range(8 * len(content)), BATCH_FLIPS)]
    damaged += [content[:place] for place in (0, *generator.sample(range(len(content)), BATCH_CUTS - 1))]
    damaged += [content + b"\0"]
    for batch in damaged:
        path.write_bytes(batch)
        assert f"{path} (damaged)" in str(find_refusal(cifar.load, original, cifar.root))
        assert path.read_bytes() == batch
    path.unlink()
    assert f"{path} (not there)" in str(find_refusal(cifar.load, original, cifar.root))
    path.mkdir()
    assert f"{path} (damaged)" in str(find_refusal(cifar.load, original, cifar.root))


def test_a_damaged_batch_is_unpacked_again_from_a_good_archive(cifar: Cifar) -> None:
    original = cifar.load_original()
    for name in cifar.files[:-1]:
        cifar.unpack()
        (cifar.root / ARCHIVE).write_bytes(cifar.archive)
        (cifar.root / "cifar-10-batches-py" / name).write_bytes(b"damaged")
        assert are_equal(cifar.load(), original)


def test_a_damaged_download_is_not_trusted_later(cifar: Cifar, server: Server) -> None:
    original = cifar.load_original()
    cifar.patch.setattr(torchvision.datasets.CIFAR10, "url", server.url + ARCHIVE)
    for damaged in make_damaged_downloads(cifar.archive):
        server.answers = {f"/{ARCHIVE}": damaged}
        assert f"{cifar.root / ARCHIVE} (damaged)" in str(
            find_refusal(cifar.load, original, cifar.root, may_leave=(ARCHIVE,))
        )
        (cifar.root / ARCHIVE).write_bytes(damaged)  # an earlier download may have left it
        server.answers = {}
        assert "damaged" in str(find_refusal(cifar.load, original, cifar.root))
        server.answers = {f"/{ARCHIVE}": cifar.archive}
        assert are_equal(cifar.load(), original)
        shutil.rmtree(cifar.root)
        cifar.root.mkdir()


def make_damaged_downloads(content: bytes) -> list[bytes]:
    size = len(content)
    return [b"", content[:1], content[: size // 2], content[:-1], flip(content, 4 * size), content + b"x", b"<html>"]


def promise_more(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    handler.wfile.write(b"x" * 100)


def promise_chunks(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"ffff\r\nx")
    handler.close_connection = True


def redirect_to_itself(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.end_headers()


TRANSFERS: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {
    "ends early": promise_more,
    "ends within a chunk": promise_chunks,
    "turns in circles": redirect_to_itself,
    "is no HTTP": lambda handler: handler.wfile.write(b"SSH-2.0-server\r\n") and None,
    "is nothing": lambda handler: None,
    "is refused": lambda handler: handler.send_error(403),
    "fails": lambda handler: handler.send_error(500),
    "lies about its length": lambda handler: (
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: x\r\n\r\nx") and None
    ),
}


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_a_failed_transfer_is_reported_in_a_sentence(transfer: str, cifar: Cifar, server: Server) -> None:
    original = cifar.load_original()
    cifar.patch.setattr(torchvision.datasets.CIFAR10, "url", server.url + ARCHIVE)
    server.answers = {f"/{ARCHIVE}": TRANSFERS[transfer]}
    sentence = str(find_refusal(cifar.load, original, cifar.root, may_leave=(ARCHIVE,)))
    assert "no usable cifar10 files: looked in " in sentence
    server.answers = {f"/{ARCHIVE}": cifar.archive}
    assert are_equal(cifar.load(), original)


def make_batch(images: Any = None, labels: Any = None) -> dict[str, Any]:
    return {
        "data": np.zeros((20, 3072), np.uint8) if images is None else images,
        "labels": [i % 10 for i in range(20)] if labels is None else labels,
    }


WRONG_BATCHES: dict[str, bytes] = {
    "a label of 10": pickle.dumps(make_batch(labels=[10] * 20), 2),
    "a label below 0": pickle.dumps(make_batch(labels=[-1] * 20), 2),
    "labels for fewer": pickle.dumps(make_batch(labels=[0] * 19), 2),
    "labels for more": pickle.dumps(make_batch(labels=[0] * 21), 2),
    "images of other size": pickle.dumps(make_batch(images=np.zeros((20, 3071), np.uint8)), 2),
    "fewer images": pickle.dumps(make_batch(images=np.zeros((19, 3072), np.uint8)), 2),
    "no images": pickle.dumps(make_batch(images=np.zeros((0, 3072), np.uint8)), 2),
    "no labels": pickle.dumps({"data": np.zeros((20, 3072), np.uint8)}, 2),
    "nothing in it": pickle.dumps({}, 2),
    "another object": pickle.dumps([1, 2, 3], 2),
    "half a pickle": pickle.dumps(make_batch(), 2)[:100],
    "no pickle": b"not a pickle",
    "no byte": b"",
}


@pytest.mark.parametrize("wrong", WRONG_BATCHES)
@pytest.mark.parametrize("file", ["data_batch_3", "test_batch"])
def test_wrong_content_is_refused_even_with_the_right_checksum(wrong: str, file: str, cifar: Cifar) -> None:
    original = cifar.load_original()
    cifar.unpack()
    _, md5s, _ = make_cifar_archive()
    (cifar.root / "cifar-10-batches-py" / file).write_bytes(WRONG_BATCHES[wrong])
    cifar.accept_checksums(cifar.archive, {**md5s, file: hashlib.md5(WRONG_BATCHES[wrong]).hexdigest()})
    assert "cifar10" in str(find_refusal(cifar.load, original, cifar.root))


@pytest.fixture
def served_mnist(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Load, datasets.Dataset]:
    """Download a small MNIST through torchvision, and return its folder, a function that loads it, and its data."""
    write_idx_files(tmp_path / "served")
    accept_files(tmp_path / "served", monkeypatch)
    files = {path.name: path.read_bytes() for path in (tmp_path / "served").iterdir()}
    server.answers = {f"/{name}": content for name, content in files.items()}
    resources = [(f"{n}.gz", hashlib.md5(files[f"{n}.gz"]).hexdigest()) for n in idx_files.IDX_FILES]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [server.url])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)

    def load() -> datasets.Dataset:
        return datasets.load_dataset("mnist", tmp_path / "data")

    return tmp_path / "data" / "MNIST" / "raw", load, load()


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("file", idx_files.IDX_FILES)
def test_a_damaged_copy_beside_an_intact_one_does_no_harm(
    file: str, suffix: str, served_mnist: tuple[Path, Load, datasets.Dataset], server: Server
) -> None:
    folder, load, original = served_mnist
    server.answers = {}
    path = folder / f"{file}{suffix}"
    content = path.read_bytes()
    for damaged in (b"", content[:-1], flip(content, 8 * (len(content) - 5))):
        path.write_bytes(damaged)
        assert find_refusal(load, original, folder.parent.parent) is None


@pytest.mark.parametrize("file", idx_files.IDX_FILES)
def test_a_download_killed_in_the_middle_is_not_trusted(
    file: str, served_mnist: tuple[Path, Load, datasets.Dataset], server: Server
) -> None:
    folder, load, original = served_mnist
    good = server.answers
    content = (folder / f"{file}.gz").read_bytes()
    for part in (b"", content[:1], content[: len(content) // 2], content[:-1]):
        for name in idx_files.IDX_FILES[idx_files.IDX_FILES.index(file) :]:  # files not yet unpacked
            (folder / name).unlink(missing_ok=True)
        for name in idx_files.IDX_FILES[idx_files.IDX_FILES.index(file) + 1 :]:  # files not yet downloaded
            (folder / f"{name}.gz").unlink(missing_ok=True)
        (folder / f"{file}.gz").write_bytes(part)
        server.answers = {}
        sentence = str(find_refusal(load, original, folder.parent.parent))
        assert "no usable mnist files: looked in " in sentence
        server.answers = good
        assert are_equal(load(), original)


@pytest.mark.parametrize("file", idx_files.IDX_FILES)
def test_a_damaged_file_on_the_server_is_refused(
    file: str, served_mnist: tuple[Path, Load, datasets.Dataset], server: Server
) -> None:
    folder, load, original = served_mnist
    good = dict(server.answers)
    for damaged in make_damaged_downloads(good[f"/{file}.gz"]):
        shutil.rmtree(folder)
        server.answers = {**good, f"/{file}.gz": damaged}
        assert f"{file}.gz" in str(find_refusal(load, original, folder.parent.parent, may_leave=("ubyte",)))
        server.answers = dict(good)
        assert are_equal(load(), original)


# The number of cases of each kind; of drawn command lines, the largest number.
SIZES = [10_000, 10_000, *(len(idx(np.arange(n) % 10)) for n in (100, 20))]  # bytes of the four files, at least
CASES = {
    "command lines: drawn": COMMAND_LINES * len(SCRIPTS),
    "command lines: absurd values": len(ABSURD),
    "command lines: processes": len(PROCESSES),
    ".gz files: a flipped bit": sum(len(choose_bits(size, FLIPS)) for size in SIZES),
    ".gz files: truncated": sum(len(choose_places(size, CUTS)) for size in SIZES),
    ".gz files: wrong content": 3 * (len(BAD_IMAGES) + len(BAD_LABELS)),
    ".gz files: no file": len(IN_ITS_PLACE) * len(SIZES),
    ".gz files: Fashion-MNIST": 2 * len(SIZES) + 1,
    "data roots": len(BAD_ROOTS) * 3,
    "CIFAR-10 archive: damaged": len(choose_bits(10_000, ARCHIVE_FLIPS)) + len(choose_places(10_000, ARCHIVE_CUTS)) + 3,
    "CIFAR-10 files: damaged": 7 * (BATCH_FLIPS + BATCH_CUTS + 3) + 6,
    "CIFAR-10 files: wrong content": 2 * len(WRONG_BATCHES),
    "downloads: damaged": len(make_damaged_downloads(b"x")) * (2 + len(SIZES)),
    "downloads: broken off": len(TRANSFERS) + 4 * len(SIZES),
    "downloads: one copy of two damaged": 2 * 3 * len(SIZES),
}

if __name__ == "__main__":
    print("\n".join(f"{count:6} {kind}" for kind, count in {**CASES, "in all": sum(CASES.values())}.items()))
