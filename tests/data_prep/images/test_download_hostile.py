"""Hostile answers of servers: each URL gets a status, nothing raises or hangs."""

import gzip
import os
import random
import re
import ssl
import subprocess
import sys
import time
import zlib
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from data_prep.images import download
from tests.data_prep.raw_server import HOST, answer, fetch_settings, serving

STATUS = re.compile(
    r"ok|bad_url|not_http|port_refused|dns|private_address|connection|tls|timeout"
    r"|redirect_limit|too_large|empty_body|truncated_body|bad_http|opted_out"
    r"|http_\d{1,3}|http_5xx"
)
STARTS = [
    b"HTTP/1.1 %d OK" % code for code in (200, 200, 200, 204, 206, 301, 302, 304, 999)
] + [b"HTTP/1.0 200", b"HTTP/9.9 200 OK", b"ICY 200", b"HTTP/1.1 000 OK", b"HTTP/1.1 "]
LINES = [
    *(b"Content-Length: " + x for x in b"0,5,-1,+5,5.0,0x5,1e3,,5 5".split(b",")),
    *(b"Content-Length: " + b"9" * n for n in (5, 17, 18, 19, 20, 50, 5000)),
    *(b"Transfer-Encoding: " + x for x in (b"chunked", b"gzip, chunked", b"x", b"")),
    *(
        b"Content-Encoding: " + x
        for x in (b"gzip", b"deflate", b"br", b"zstd", b"gzip, gzip", b"\xff", b"none")
    ),
    *(
        b"Location: " + x
        for x in (
            *(b"/", b"//", b"http://", b"http://[", b"http://[::1", b"javascript:1"),
            *(b"?" * 9999, b"\xff\xfe", b"http://\xff/", b"http://images.example:0/"),
            *(
                b"http://a@b@[::1]/",
                b"http://images.example:x/",
                b"%",
                b"/%00",
                b"http:a",
            ),
            *(b"https://images.example/", b"http://a..b/", b"//127.1"),
        )
    ),
    *(b"Retry-After: " + x for x in (b"nan", b"-1", b"1e999", b"Mon", b"\xb2")),
    *(b"Connection: " + x for x in (b"close", b"keep-alive", b"upgrade", b"")),
    *(b"X-Robots-Tag: " + x for x in (b"noai", b":", b",,,", b"\xff", b"a" * 9999)),
    *(b"Set-Cookie: a", b"Upgrade: h2c", b"Trailer: x", b"Sec-WebSocket-Key1: 1"),
    *(b"\x00", b":", b" ", b"\t:", b"a" * 9000, b"\xe9: \xe9", b"a:b\rc", b"a: \x00"),
]
CHUNKS = [
    *(b"5\r\nabcde\r\n", b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n", b"5;x=y\r\nabcde\r\n"),
    *(b"F" * 8 + b"\r\n", b"F" * 16 + b"\r\n", b"F" * 40 + b"\r\n", b"-1\r\n", b"\r\n"),
    *(
        b"5\nabcde\n",
        b"5;" + b"x" * 9999 + b"\r\n",
        b"0x5\r\nabcde\r\n",
        b"5\r\nabc\r\n",
    ),
    *(b"00000000005\r\nabcde\r\n", b"5 \r\nabcde\r\n", b"0\r\n" + b"a: b\r\n" * 999),
]
BODIES = [
    *(b"", b"abcde", b"\x00" * 5000, b"HTTP/1.1 200 OK\r\n\r\n"),
    *(gzip.compress(b"a" * 9), gzip.compress(b"\x00" * 9_000_000), gzip.compress(b"")),
    *(gzip.compress(b"a" * 99)[:-4], gzip.compress(b"a") + b"junk", b"\x1f\x8b\x08"),
    *(gzip.compress(gzip.compress(b"\x00" * 9_000_000)), zlib.compress(b"a" * 9)),
    *(zlib.compress(b"a" * 9)[2:-4], b"\x28\xb5\x2f\xfd" + b"\xff" * 99, b"\x0b" * 99),
]


def reply(draw):
    """Bytes of an answer that is more or less one."""
    kind = draw.random()
    if kind < 0.1:
        return draw.randbytes(draw.choice((0, 1, 10, 1000, 300_000)))
    lines = [draw.choice(STARTS), *draw.choices(LINES, k=draw.randrange(6))]
    chunked = any(b"chunked" in line for line in lines) or draw.random() < 0.1
    if chunked and draw.random() < 0.9:
        body = b"".join(draw.choices(CHUNKS, k=draw.randrange(6)))
    else:
        body = draw.choice(BODIES)
    if draw.random() < 0.3:
        lines.append(b"Content-Length: %d" % len(body))
    end = draw.choice((b"\r\n", b"\r\n", b"\n", b"\r"))
    whole = bytearray(end.join([*lines, b"", b""]) + body)
    # No redirects that lead anywhere: nothing here asks beyond loopback.
    if kind < 0.4 and b"Location" not in whole:
        for _ in range(draw.randrange(1, 5)):
            at = draw.randrange(len(whole) + 1)
            whole[at : at + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
    if kind < 0.2:
        del whole[draw.randrange(len(whole) + 1) :]
    return bytes(whole)


def pieces(seed, draw_reply=reply):
    """An answer in pieces that ends well, with a reset or not at all."""
    draw = random.Random(seed)
    whole = draw_reply(draw)
    at = draw.randrange(len(whole) + 1) if draw.random() < 0.2 else 0
    yield whole[:at]
    yield whole[at:]
    end = draw.random()
    if end < 0.1:
        raise ConnectionResetError
    if end < 0.15:
        time.sleep(8)  # longer than anybody waits


def check(urls, port, caplog):
    settings = fetch_settings(port) | {"timeout_seconds": 4.0, "per_host": 64}
    settings |= {"concurrency": 64, "max_bytes": 1 << 20, "max_held_bytes": 1 << 26}
    found = sorted(download.fetch(urls, download.Limits(**settings)))
    assert [result.position for result in found] == list(range(len(urls)))
    assert not [result for result in found if not STATUS.fullmatch(result.status)]
    assert all(bool(result.body) == (result.status == "ok") for result in found)
    # What asyncio or the last resort of `request.attempt` had to log.
    assert [record.getMessage() for record in caplog.records] == []
    return [result.status for result in found]


@pytest.mark.parametrize(
    "count", [600, pytest.param(20_000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_any_answer_has_a_status(count, caplog):
    with serving(lambda target: pieces(target)) as (port, _):
        found = check([f"{HOST}/{i}" for i in range(count)], port, caplog)
    assert len(set(found)) > 10


def test_any_answer_to_a_handshake_has_a_status(caplog):
    def handshake(draw):
        kind = bytes([draw.choice((20, 21, 22, 23))])
        record = kind + b"\x03\x03" + draw.randbytes(draw.randrange(300))
        return draw.choice((record, draw.randbytes(99), answer(), b""))

    urls = [f"https://images.example/{i}" for i in range(200)]
    with serving(lambda target: pieces(urls.pop(), handshake), asked=b"") as (port, _):
        found = check(list(urls), port, caplog)
    assert set(found) <= {"tls", "connection", "timeout"}
    assert "tls" in found


def test_an_error_that_nobody_foresaw_costs_one_image(monkeypatch, caplog):
    def fail(*args, **options):
        raise AssertionError("a fault of the library")

    with serving(lambda target: answer()) as (port, _):
        monkeypatch.setattr(aiohttp.ClientSession, "get", fail)
        (found,) = download.fetch([HOST], download.Limits(**fetch_settings(port)))
    assert found.status == "bad_http"
    assert "unexpected error while fetching http://images.example" in caplog.text
    assert "a fault of the library" in caplog.text


@pytest.fixture
def certificate(tmp_path):
    """A file with the key and the certificate of our host, which nobody signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "images.example")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(
            name, name, key.public_key(), 1, now, now + timedelta(1)
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("images.example")]), False
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + signed.public_bytes(pem)
    )
    return path


@pytest.mark.parametrize("trusted", [False, True])
def test_a_certificate_is_asked_who_vouches_for_it(certificate, trusted):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    code = (
        "import sys\n"
        "from data_prep.images import download\n"
        "from tests.data_prep.raw_server import fetch_settings\n"
        "limits = download.Limits(**fetch_settings(int(sys.argv[1])))\n"
        "(found,) = download.fetch(['https://images.example/'], limits)\n"
        "print(found.status)"
    )
    reply = answer(b"Bad Header: 1\r\nContent-Length: 23\r\n")
    environment = os.environ | ({"SSL_CERT_FILE": str(certificate)} if trusted else {})
    with serving(lambda target: reply, context=context) as (port, heads):
        found = subprocess.run(
            [sys.executable, "-c", code, str(port)],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
    assert found.stdout.split() == ["ok" if trusted else "tls"]
    assert len(heads) == trusted
