"""The processes of a run meet before JAX starts, so that a missing one is named.

JAX waits too, but then it aborts each process and does not say for which it waited.
Process 0 listens at the coordinator's port, which JAX's service takes afterwards. Each
other process sends one line of JSON, {"process": 2, "of": 4}, and waits for a line:
{"missing": []} once all have connected, {"missing": [3]} if time is up.
"""

import contextlib
import json
import socket
import time
from collections.abc import Sequence
from typing import Any

_MOST_LINE_BYTES = 10_000
_PATIENCE_SECONDS = 5.0  # for one line from a process that has connected
_PAUSE_SECONDS = 0.5


def meet(coordinator: str, count: int, index: int, *, seconds: float) -> None:
    """Returns once all processes of the run have connected.

    Args:
      coordinator: HOST:PORT of process 0.
      count: the number of processes.
      index: of this process.
      seconds: how long process 0 waits for the others, and they for process 0.

    Raises:
      TimeoutError: some are missing; the message, equal on all, names them.
      ValueError: process 0 has another count.
    """
    host, _, port = coordinator.rpartition(":")
    if index:
        missing = _report((host.strip("[]"), int(port)), count, index, seconds)
    else:
        missing = _receive(int(port), count, seconds)
    if missing:
        is_alone = missing == [0]
        named = (
            f"process{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
        )
        place = f" at {coordinator}" if is_alone else ""
        raise TimeoutError(
            f"wanted {count} processes within {seconds:g} seconds, got nothing from"
            f" {named}{place}; see the logs of"
            f" {'its host' if len(missing) == 1 else 'their hosts'}, and start all"
            " processes again"
        )


def _receive(port: int, count: int, seconds: float) -> list[int]:
    """Waits for all other processes; returns the missing ones, and tells the others."""
    latest = time.monotonic() + seconds
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(port))
        while missing := [n for n in range(1, count) if n not in present]:
            server.settimeout(max(latest - time.monotonic(), 1e-3))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                break
            stack.enter_context(connection)
            hello = _read(connection, _PATIENCE_SECONDS)
            if hello.get("of") == count and hello.get("process") in range(1, count):
                present[hello["process"]] = connection
            elif "of" in hello:
                _send(connection, {"of": count})
            # Those that were killed meanwhile are missing again.
            present = {n: one for n, one in present.items() if not _is_closed(one)}
        for connection in present.values():
            _send(connection, {"missing": missing})
        for connection in present.values():
            _read(connection, _PATIENCE_SECONDS)  # they close first: the port is free
    return missing


def _report(
    address: tuple[str, int], count: int, index: int, seconds: float
) -> Sequence[int]:
    """Tells process 0 that this process is there; returns the missing ones."""
    latest = time.monotonic() + seconds
    while time.monotonic() < latest:
        with contextlib.suppress(OSError):
            with socket.create_connection(address, _PATIENCE_SECONDS) as connection:
                _send(connection, {"process": index, "of": count})
                # Process 0 may have begun to wait later than this process.
                answer = _read(connection, seconds + 2 * _PATIENCE_SECONDS)
            if answer.get("of", count) != count:
                raise ValueError(
                    f"wanted --process_count={answer['of']}, as process 0 has, got"
                    f" {count}; give all processes the same"
                )
            if "missing" in answer:
                return answer["missing"]
        time.sleep(_PAUSE_SECONDS)
    return [0]


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True
        )
    return socket.create_server(("", port))


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(f"{json.dumps(message)}\n".encode())


def _read(connection: socket.socket, seconds: float) -> dict[str, Any]:
    """Reads a line of JSON; {} if none comes in time, or something else."""
    line, latest = b"", time.monotonic() + seconds
    with contextlib.suppress(OSError, ValueError):
        while not line.endswith(b"\n") and len(line) < _MOST_LINE_BYTES:
            connection.settimeout(max(latest - time.monotonic(), 1e-3))
            if not (more := connection.recv(_MOST_LINE_BYTES)):
                break
            line += more
        message = json.loads(line)
        return message if isinstance(message, dict) else {}
    return {}


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
