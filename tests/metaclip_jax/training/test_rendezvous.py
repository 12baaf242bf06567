"""Rendezvous: all processes connect, or all learn which ones are missing."""

import contextlib
import random
import socket
import threading
import time
from concurrent import futures

import pytest

from metaclip_jax.training import rendezvous


@pytest.fixture
def address():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def meet(address, *, present, count=4, seconds=60.0, after=lambda n: 0.0):
    """What each process gets that comes, `after(n)` seconds late: "met" or an error."""

    def one(index):
        time.sleep(after(index))
        try:
            rendezvous.meet(address, count, index, seconds=seconds)
            return "met"
        except (TimeoutError, ValueError) as error:
            return str(error)

    with futures.ThreadPoolExecutor(len(present)) as pool:
        return list(pool.map(one, present))


@pytest.mark.parametrize("seed", range(3))
def test_all_meet_in_whatever_order_they_come(address, seed):
    draws = random.Random(seed)
    after = [draws.uniform(0, 1) for _ in range(4)]
    assert meet(address, present=range(4), after=after.__getitem__) == ["met"] * 4
    # The port is free at once, for JAX's service.
    socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))).close()


@pytest.mark.parametrize("missing", [(2,), (1, 3), (0,)])
def test_all_that_came_learn_who_is_missing_within_a_bound(address, missing):
    present = [n for n in range(4) if n not in missing]
    began = time.monotonic()
    said = meet(address, present=present, seconds=2)
    assert time.monotonic() - began < 30
    (one,) = set(said)
    named = ", ".join(map(str, missing))
    assert "wanted 4 processes within 2 seconds, got nothing from process" in one
    assert f" {named}{f' at {address}' if missing == (0,) else ''};" in one


def test_a_process_that_came_and_vanished_is_waited_for_again(address):
    port = int(address.rpartition(":")[2])

    def vanish():
        while True:
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.sendall(b'{"process": 1, "of": 3}\n')
                return
            time.sleep(0.05)

    thread = threading.Thread(target=vanish)
    thread.start()
    later = {0: 0.0, 1: 2.0, 2: 1.0}
    assert meet(address, present=range(3), count=3, after=later.get) == ["met"] * 3
    thread.join()


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"", b"x" * 99_999]
)
def test_strangers_are_ignored(address, sent):
    port = int(address.rpartition(":")[2])

    def come():
        while True:
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.sendall(sent)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=come)
    thread.start()
    after = {0: 0.0, 1: 0.5}.get
    assert meet(address, present=range(2), count=2, after=after) == ["met"] * 2
    thread.join()


def test_another_number_of_processes_is_refused(address):
    with futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, address, present=[0], count=2, seconds=2)
        other = pool.submit(meet, address, present=[1], count=4, seconds=2)
        assert "wanted --process_count=2, as process 0 has, got 4" in other.result()[0]
        assert "got nothing from process 1;" in first.result()[0]
