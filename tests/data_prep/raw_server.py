"""A server on loopback that answers with any given bytes, valid HTTP or not."""

import socket
import struct
import threading
from contextlib import contextmanager, suppress

HOST = "http://images.example"
BODY = b"\xff\xd8\xff not quite a picture"  # 23 bytes


def answer(headers=b"", status=b"200 OK", body=BODY):
    """A whole answer; `headers` end with their line end."""
    head = b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n" % len(body)
    return head + headers + b"Connection: close\r\n\r\n" + body


@contextmanager
def serving(decide, *, context=None, asked=b"\r\n\r\n"):
    """Serves the bytes that `decide` returns for the raw request target.

    Or an iterable of its pieces, which are sent one by one; where it raises OSError,
    the connection is reset.

    Args:
        context: TLS context to serve https with.
        asked: what a request ends with; it is answered as soon as this has come.

    Yields the port and the heads of all requests, as they came.
    """
    heads = []

    def serve(connection):
        try:
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            talk(connection)
        except OSError:  # the downloader had enough, or the answer is to end so
            at_once = struct.pack("ii", 1, 0)
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        finally:
            connection.close()

    def talk(connection):
        head = b""
        while asked not in head:
            got = connection.recv(1 << 16)
            if not got:
                return
            head += got
        heads.append(head)
        reply = decide((head.split(b" ") + [b""])[1])
        for piece in [reply] if isinstance(reply, bytes) else reply:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield listener.getsockname()[1], heads
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def fetch_settings(port, hosts=("images.example",)):
    return {
        "host_map": ",".join(f"{host}=127.0.0.1:{port}" for host in hosts),
        "concurrency": 16,
        "per_host": 16,
        "timeout_seconds": 60.0,
        "max_bytes": 4000,
        "max_held_bytes": 1 << 20,
        "retries": 0,
        "user_agent": "test-agent/1",
        "backoff_seconds": 0.01,
    }
