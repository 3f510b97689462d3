from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from sweeps.driver import watch
from sweeps.driver.resources import Node
from sweeps.driver.run import get_ray_address
from sweeps.driver.watch import Beat, Message, RayFailedError, Watch, check_address
from trainables.errors import BadInputError
from trainables.worker.pack import PackReport

BEAT = Beat(alive=True, total=Node(4, 1), free=Node(0, 0.5))


@pytest.fixture
def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Return a port that accepts connections, behind which nothing answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Scene:
    """A watch with a clock, and what it said."""

    def __init__(self, clock: Clock, address: str | None = None) -> None:
        self.clock = clock
        self.lines: list[str] = []
        self.watch = Watch(address, self.lines.append)

    def wait(self, seconds: int, *, beats: bool) -> None:
        """Let time pass, with a look each second."""
        for second in range(seconds):
            self.clock.now += 1
            if beats and second % 2 == 0:
                self.watch.note(Message.BEAT, BEAT)
            else:
                self.watch.look()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    monkeypatch.setattr(watch, "read_memory_use", lambda: 0.5)
    return clock


def test_a_line_a_minute_says_what_is_waited_for(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(clock)
    scene.watch.begin("trials train")
    scene.wait(59, beats=True)
    assert scene.lines == []
    scene.wait(130, beats=True)
    wait = "trials train; free: 0 of 4 CPUs and 0.5 of 1 GPUs"
    assert scene.lines == [f"Still waiting after 1 min: {wait}", f"Still waiting after 2 min: {wait}", scene.lines[2]]
    monkeypatch.setattr(watch, "read_memory_use", lambda: 0.97)
    scene.wait(60, beats=True)
    assert scene.lines[-1].endswith("97% of this machine's memory is in use")


def test_reports_of_packs_need_no_line(clock: Clock) -> None:
    scene = Scene(clock)
    for _ in range(10):
        scene.wait(50, beats=True)
        scene.watch.note(Message.REPORT, ("pack", PackReport()))
    assert scene.lines == []


def test_a_process_that_refuses_connections_has_ended(clock: Clock, free_port: int) -> None:
    scene = Scene(clock)
    scene.watch.note(Message.STARTED, {watch.HEAD: ("127.0.0.1", free_port)})
    with pytest.raises(RayFailedError, match=r"the head of its cluster \(GCS\) has ended"):
        scene.wait(30, beats=False)


def test_a_dead_raylet_is_noticed(clock: Clock) -> None:
    scene = Scene(clock)
    with pytest.raises(RayFailedError, match=r"its process on this machine \(raylet\) has ended"):
        scene.watch.note(Message.BEAT, Beat(alive=False, total=Node(4, 1), free=Node(4, 1)))


def test_a_ray_that_does_not_answer_is_waited_for(clock: Clock, silent_port: int) -> None:
    """It may be busy, or the machine may have slept: this is said within half a minute, and is no failure."""
    scene = Scene(clock)
    scene.watch.note(Message.STARTED, {watch.HEAD: ("127.0.0.1", silent_port)})
    scene.watch.begin("trials train")
    scene.wait(30, beats=False)
    [line] = scene.lines
    assert line.startswith("Ray has not answered for ")
    assert "Ctrl-C stops the sweep, and the same command continues it" in line
    scene.wait(600, beats=False)
    assert sum("has not answered" in line for line in scene.lines) == 1
    assert sum("Still waiting after" in line for line in scene.lines) == 10
    scene.watch.note(Message.BEAT, BEAT)
    assert scene.lines[-1] == "Ray answers again"


def test_a_head_that_cannot_be_reached_is_named_with_the_reason(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of a cluster is away, for example behind a VPN that has gone."""
    monkeypatch.setattr(watch, "try_connection", lambda host, port: "Network is unreachable")
    scene = Scene(clock)
    scene.watch.note(Message.STARTED, {watch.HEAD: ("10.0.0.1", 6379)})
    scene.wait(30, beats=False)
    assert "the head of its cluster (GCS) cannot be reached: Network is unreachable" in scene.lines[0]


def test_a_cluster_that_accepts_connections_but_does_not_answer_is_given_up(clock: Clock) -> None:
    scene = Scene(clock, "10.0.0.1:6379")
    scene.wait(30, beats=False)
    assert len(scene.lines) == 1
    assert "RAY_ADDRESS=10.0.0.1:6379" in scene.lines[0]
    with pytest.raises(BadInputError, match=r"RAY_ADDRESS=10\.0\.0\.1:6379 .* unset RAY_ADDRESS"):
        scene.wait(40, beats=False)


@pytest.mark.parametrize("prefix", ["127.0.0.1:", "localhost:", "ray://127.0.0.1:"])
def test_an_address_where_nothing_listens_is_refused(prefix: str, free_port: int) -> None:
    with pytest.raises(BadInputError, match=r"no Ray cluster answers at RAY_ADDRESS=.*Connection refused.*unset"):
        check_address(f"{prefix}{free_port}")


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:0", "head:65536", "head:x", "ray://head"])
def test_an_address_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(BadInputError, match="is no address of a Ray cluster; give HOST:PORT, or unset it"):
        check_address(address)


def test_an_address_where_something_listens_is_accepted(silent_port: int) -> None:
    check_address(f"127.0.0.1:{silent_port}")
    check_address("auto")


def test_local_is_rays_word_for_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert get_ray_address() is None
