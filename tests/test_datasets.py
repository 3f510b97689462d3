from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import pickle
import re
import shutil
import struct
import tarfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from trainables import checksums, datasets, idx_files, sources
from trainables.errors import BadInputError

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)


def idx(array: np.ndarray) -> bytes:
    """Return an array in gzipped IDX format."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def write_idx_files(folder: Path, train: int = 100, test: int = 20, side: int = 28) -> dict[str, np.ndarray]:
    """Write a small data set into four files with MNIST's names, and return its arrays by these names."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = generator.integers(0, 256, (n, side, side), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(n, dtype=np.uint8) % 10
    for name, array in arrays.items():
        (folder / f"{name}.gz").write_bytes(idx(array))
    return arrays


# The pipeline


def test_pipeline_equals_torchvision_on_the_same_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    transform = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize(CIFAR_MEAN, CIFAR_STD), v2.Grayscale(1)]
    )
    expected = transform(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(datasets.to_grey(images, 255, "cifar10"), expected, atol=1e-5)


def test_pipeline_of_one_channel_equals_torchvision() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 28, 28), dtype=np.uint8)
    transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.286,), (0.353,))])
    expected = transform(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(datasets.to_grey(images, 255, "fashion_mnist"), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_pipeline_equals_torchvision(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, channels, 32, 32), dtype=np.uint8)
    transform = v2.Compose(
        [v2.RGB(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
    )
    expected = transform(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(datasets.to_colour(images, 255, "any"), expected, atol=1e-6)


@pytest.mark.parametrize(("pipeline", "channels"), [("unit", 1), ("colour", 3)])
def test_the_unit_and_colour_pipelines_hold_out_no_validation_images(pipeline: str, channels: int) -> None:
    data = datasets.load_dataset("digits", Path("unused"), pipeline)
    assert data.input_shape == (channels, 32, 32)
    assert (len(data.train_images), len(data.val_images), len(data.test_images)) == (1437, 0, 360)
    assert (data.test_images.min(), data.test_images.max()) == (0 if pipeline == "unit" else -1, 1)


def test_digits_are_the_bundled_images_enlarged() -> None:
    data = datasets.load_dataset("digits", Path("unused"))
    assert data.input_shape == (1, 32, 32)
    assert (len(data.train_images), len(data.val_images), len(data.test_images)) == (1297, 140, 360)
    blocks = data.test_images.reshape(-1, 8, 4, 8, 4)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    everything = np.concatenate([data.train_images, data.val_images, data.test_images])
    assert abs(everything.mean()) < 0.001
    assert everything.std() == pytest.approx(1, abs=0.001)


# The split


@given(st.lists(st.integers(0, 9), min_size=200, max_size=1000))
def test_split_is_stratified_disjoint_and_fixed(drawn: list[int]) -> None:
    labels = np.concatenate([np.repeat(np.arange(10), 15), drawn]).astype(np.int64)
    train, val = datasets.split_stratified(labels)
    assert sorted([*train, *val]) == list(range(len(labels)))
    assert set(np.bincount(labels[val], minlength=10)) == {round(0.1 * len(labels) / 10)}
    again_train, again_val = datasets.split_stratified(labels.copy())
    assert (train == again_train).all()
    assert (val == again_val).all()


def test_split_of_a_balanced_set_is_a_tenth_of_every_class() -> None:
    labels = np.repeat(np.arange(10), 600)
    train, val = datasets.split_stratified(labels)
    assert np.bincount(labels[val]).tolist() == [60] * 10
    assert np.bincount(labels[train]).tolist() == [540] * 10
    assert (np.diff(val) > 1).any()  # the images are drawn at random, not as a block
    assert not np.array_equal(val % 600, np.tile(val[:60], 10))  # and other ones in every class


def test_the_split_of_digits_never_changes() -> None:
    """If this fails, trials that were recorded before were validated on other images: increase `trial.VERSION`."""
    data = datasets.load_dataset("digits", Path("unused"))
    assert hashlib.sha256(data.val_images.tobytes()).hexdigest()[:16] == "845ecfd8ef4b1097"


# Files


def accept_files(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "mnist") -> None:
    """Make the `.gz` files in a folder, as far as they can be unpacked, the known files of a data set."""
    known = dict(idx_files.KNOWN_MD5[name])
    for file in idx_files.IDX_FILES:
        with suppress(OSError, EOFError, zlib.error):
            content = gzip.decompress((folder / f"{file}.gz").read_bytes())
            known[file] = hashlib.md5(content).hexdigest()
    monkeypatch.setitem(idx_files.KNOWN_MD5, name, known)
    monkeypatch.delitem(checksums.CHECKSUMS, name, raising=False)


def test_gz_files_directly_in_the_data_root_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = write_idx_files(tmp_path)
    accept_files(tmp_path, monkeypatch)
    data = datasets.load_dataset("mnist", tmp_path)
    assert (len(data.train_images), len(data.val_images), len(data.test_images)) == (90, 10, 20)
    raw = arrays["t10k-images-idx3-ubyte"]
    expected = (raw[:, None] / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(data.test_images, expected, atol=1e-5)
    assert data.test_labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()


def test_fashion_mnist_is_read_from_debians_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_files(tmp_path / "debian")
    accept_files(tmp_path / "debian", monkeypatch, "fashion_mnist")
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    assert len(datasets.load_dataset("fashion_mnist", tmp_path / "data").test_images) == 20
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_data_sets_with_the_same_file_names_are_told_apart(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx_files(tmp_path)
    accept_files(tmp_path, monkeypatch, "fashion_mnist" if name == "mnist" else "mnist")
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    for source in (torchvision.datasets.MNIST, torchvision.datasets.FashionMNIST):
        monkeypatch.setattr(source, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(BadInputError, match=f"no usable {name} files"):
        datasets.load_dataset(name, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],  # truncated
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],  # a flipped bit
        lambda content: b"not a gzip file",
        lambda content: gzip.compress(b"\0\0\x0d\x03" + bytes(100)),  # floats
        lambda content: gzip.compress(gzip.decompress(content)[:-1]),  # one byte too short
        lambda content: gzip.compress(b""),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, damage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_files(tmp_path)
    accept_files(tmp_path, monkeypatch)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInputError, match=r"train-images-idx3-ubyte.gz is not a readable gzipped IDX file"):
        datasets.load_dataset("mnist", tmp_path)


def test_labels_must_fit_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_files(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(idx(np.zeros(99)))
    accept_files(tmp_path, monkeypatch)
    with pytest.raises(BadInputError, match="one label an image"):
        datasets.load_dataset("mnist", tmp_path)
    path.write_bytes(idx(np.full(100, 10)))
    accept_files(tmp_path, monkeypatch)
    with pytest.raises(BadInputError, match="not all 0 to 9"):
        datasets.load_dataset("mnist", tmp_path)


def unpack_files(folder: Path, into: Path) -> None:
    into.mkdir(parents=True)
    for file in idx_files.IDX_FILES:
        (into / file).write_bytes(gzip.decompress((folder / f"{file}.gz").read_bytes()))


@pytest.mark.parametrize("place", [".", "MNIST/raw"])
def test_unpacked_files_are_read(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx_files(tmp_path / "packed")
    accept_files(tmp_path / "packed", monkeypatch)
    unpack_files(tmp_path / "packed", tmp_path / "data" / place)
    assert len(datasets.load_dataset("mnist", tmp_path / "data").test_images) == 20


@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_files_of_another_data_set_do_not_train(
    packed: bool, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fashion-MNIST's files have the same names as MNIST's, and torchvision takes any files of these names."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    write_idx_files(tmp_path / "packed")
    accept_files(tmp_path / "packed", monkeypatch, "fashion_mnist")
    folder = tmp_path / "data" / place
    if packed:
        shutil.copytree(tmp_path / "packed", folder)
    else:
        unpack_files(tmp_path / "packed", folder)
    with pytest.raises(BadInputError) as refusal:
        datasets.load_dataset("mnist", tmp_path / "data")
    if place == "." or not packed:  # torchvision tries to download where it has not unpacked files
        name = "train-images-idx3-ubyte" + (".gz" if packed else "")
        assert f"{folder / name} is a file of fashion_mnist, not train-images-idx3-ubyte of mnist" in str(refusal.value)


def test_files_in_an_old_format_of_torchvisions_do_not_train(tmp_path: Path) -> None:
    """torchvision still takes the files that its earlier versions wrote, which nothing checks."""
    folder = tmp_path / "MNIST" / "processed"
    folder.mkdir(parents=True)
    images, labels = torch.zeros(100, 28, 28, dtype=torch.uint8), torch.arange(100) % 10
    for name in ("training.pt", "test.pt"):
        torch.save((images, labels), folder / name)
    with pytest.raises(BadInputError, match="delete that folder"):
        datasets.load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("file", idx_files.IDX_FILES)
def test_unknown_content_is_refused_with_what_was_expected(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx_files(tmp_path)
    accept_files(tmp_path, monkeypatch)
    path = tmp_path / f"{file}.gz"
    content = gzip.decompress(path.read_bytes())
    expected, changed = hashlib.md5(content).hexdigest(), content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes(gzip.compress(changed))
    sentence = f"{path} is not {file} of mnist: the MD5 of its unpacked content is {hashlib.md5(changed).hexdigest()}, "
    with pytest.raises(BadInputError, match=re.escape(f"{sentence}expected {expected}")):
        datasets.load_dataset("mnist", tmp_path)


@pytest.mark.skipif(not sources.DEBIAN_FASHION_MNIST.exists(), reason="Debian's package is not installed")
@pytest.mark.slow
def test_debians_fashion_mnist_has_the_known_content(tmp_path: Path) -> None:
    assert len(datasets.load_dataset("fashion_mnist", tmp_path).train_images) == 54_000
    with pytest.raises(BadInputError, match="is a file of fashion_mnist"):
        idx_files.read_idx_folder("mnist", sources.DEBIAN_FASHION_MNIST)


# Downloads, from a server on the loopback interface


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder on the loopback interface, and yield the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()


def make_cifar_archive() -> tuple[bytes, dict[str, str], np.ndarray]:
    """Make an archive in CIFAR-10's format with 20 images per batch.

    Returns:
        The archive, the MD5s of its files by name, and the training images.
    """
    generator = np.random.default_rng(0)
    md5s, train = {}, []
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
            images = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
            content: dict[str, Any] = {"data": images, "labels": [i % 10 for i in range(20)]}
            if name == "batches.meta":
                content = {"label_names": [f"class {i}" for i in range(10)]}
            elif name != "test_batch":
                train.append(images)
            body = pickle.dumps(content, protocol=2)
            md5s[name] = hashlib.md5(body).hexdigest()
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue(), md5s, np.concatenate(train)


def serve_cifar(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Make torchvision download CIFAR-10 from the server, and return the training images `(100, 3, 32, 32)`."""
    folder, url = server
    archive, md5s, images = make_cifar_archive()
    (folder / "cifar-10-python.tar.gz").write_bytes(archive)
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "url", url + "cifar-10-python.tar.gz")
    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(cifar, "train_list", [[f"data_batch_{i}", md5s[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", md5s["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": md5s["batches.meta"]})
    return images.reshape(-1, 3, 32, 32)


def test_cifar10_is_downloaded_once_and_read(
    server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = serve_cifar(server, monkeypatch)
    data = datasets.load_dataset("cifar10", tmp_path / "data")
    assert data.input_shape == (1, 32, 32)
    assert (len(data.train_images), len(data.val_images), len(data.test_images)) == (90, 10, 20)
    _, val = datasets.split_stratified(np.arange(100) % 10)
    np.testing.assert_array_equal(data.val_images, datasets.to_grey(images[val], 255, "cifar10"))
    assert data.val_labels.tolist() == (val % 10).tolist()
    (server[0] / "cifar-10-python.tar.gz").unlink()  # so that a second download would fail
    assert datasets.load_dataset("cifar10", tmp_path / "data").checksum == data.checksum


def test_a_damaged_cifar10_archive_is_refused_unopened(
    server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_cifar(server, monkeypatch)
    path = server[0] / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInputError, match=r"no usable cifar10 files.*--dataset digits"):
        datasets.load_dataset("cifar10", tmp_path / "data")


def test_the_error_without_network_and_files_offers_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(BadInputError, match=r"looked in .*cifar-10-batches-py.*--dataset digits, which works offline"):
        datasets.load_dataset("cifar10", tmp_path)


def test_mnist_is_downloaded_once_through_torchvision(
    server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = server
    write_idx_files(folder)
    accept_files(folder, monkeypatch)
    resources = [(f"{n}.gz", hashlib.md5((folder / f"{n}.gz").read_bytes()).hexdigest()) for n in idx_files.IDX_FILES]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [url])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    assert len(datasets.load_dataset("mnist", tmp_path / "data").train_images) == 90
    (folder / "train-images-idx3-ubyte.gz").unlink()
    assert len(datasets.load_dataset("mnist", tmp_path / "data").train_images) == 90
