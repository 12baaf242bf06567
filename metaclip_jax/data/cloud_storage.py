"""Google Cloud Storage whose errors say what it refused, and never look like absence.

gcsfs answers "no such folder" for a bucket that nobody may read, and for one whose name
is mistyped. Here both are a StorageError: wanted which object, got which refusal, cure.
"""

import asyncio
import contextlib
import contextvars
import functools
import random
import re
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import fsspec
import google.auth.exceptions
import requests
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError, is_retriable

from metaclip_jax.data import storage_errors

# Limits of each attempt: to connect, and between two pieces of an answer. gcsfs alone
# waits forever for a silent connection.
CONNECT_SECONDS, SILENT_SECONDS = 10.0, 30.0
# The first GET may be silent for so long, the second for twice that, and so on: most
# connections that are silent stay so, and a new one answers at once.
FIRST_SILENT_SECONDS = 0.5
# Waits double from 0.05 to 0.1 s on: half a minute in all. gcsfs alone waits 1 to 2 s
# after the first failure, and most requests need no second one.
_FIRST_WAIT_SECONDS, _ATTEMPTS = 0.1, 10

_CREDENTIALS = (
    "log in by `gcloud auth application-default login`, or give this machine a service"
    " account"
)
_QUOTA = "wait and run the same command again, with fewer workers or a higher quota"
_LATER = "run the same command again later; it continues"
_CURES = {
    401: ("no valid login", _CREDENTIALS),
    403: ("no permission", "have the bucket's owner grant it to this account"),
    404: ("no such bucket", "correct the path, or create the bucket"),
    429: ("too many requests", _QUOTA),
}
_ABOUT_QUOTA = re.compile("quota|rate.?limit", re.IGNORECASE)
_OFFLINE = (
    aiohttp.ClientConnectionError,
    asyncio.TimeoutError,
    requests.exceptions.ConnectionError,
    google.auth.exceptions.TransportError,
)
# An object in the addresses that gcsfs asks.
_OBJECT = re.compile(r"\bb/(?P<bucket>[^/?{]+)(/o/(?P<key>[^?{]+))?")


# The timeouts of the current attempt.
_timeout: contextvars.ContextVar[aiohttp.ClientTimeout] = contextvars.ContextVar("_")


class FileSystem(GCSFileSystem):
    """gcsfs's, with StorageErrors and fewer requests.

    The errors are raised after retries, which take half a minute.
    """

    @property
    def requests_timeout(self) -> aiohttp.ClientTimeout:
        """The current attempt's; gcsfs reads it for each request."""
        return _timeout.get()

    @requests_timeout.setter
    def requests_timeout(self, _: object) -> None:
        """Ignores gcsfs's own, which would be the same for all attempts."""

    async def _request(self, method: str, path: str, *args: str, **kwargs: Any) -> Any:
        with _naming(path, args):
            once = GCSFileSystem._request.__wrapped__  # without gcsfs's own retries
            return await _retry(
                lambda: once(self, method, path, *args, **kwargs),
                # An upload may be silent for long while its content is stored.
                FIRST_SILENT_SECONDS if method == "GET" else SILENT_SECONDS,
            )

    async def _get_file_request(self, rpath: str, *args: Any, **kwargs: Any) -> Any:
        with _naming(self.url(rpath), ()):
            once = GCSFileSystem._get_file_request.__wrapped__
            return await _retry(
                lambda: once(self, rpath, *args, **kwargs), FIRST_SILENT_SECONDS
            )

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Asks for an object, and for a folder only where there is no such object.

        gcsfs asks for both at once, and a third time for what is missing.
        """
        path = self._strip_protocol(path).rstrip("/")
        if "/" not in path:
            return await super()._info(path, **kwargs)
        with contextlib.suppress(FileNotFoundError):
            return await self._get_object(path)
        objects, folders = await self._do_list_objects(path, max_results=1)
        if not objects and not folders:
            raise FileNotFoundError(path)
        return {"name": path, "size": 0, "type": "directory"}

    async def _isdir(self, path: str) -> bool:
        try:
            return (await self._info(path))["type"] == "directory"
        except FileNotFoundError:
            return False


@functools.cache
def register() -> None:
    """Makes gs:// of fsspec, and so of epath, this file system."""
    for protocol in ("gs", "gcs"):
        fsspec.register_implementation(protocol, FileSystem, clobber=True)


async def _retry(request: Callable[[], Awaitable[Any]], silent_seconds: float) -> Any:
    """Repeats a request while its error may pass.

    Its first attempt may be silent for `silent_seconds`.
    """
    for attempt in range(_ATTEMPTS):
        silent = min(silent_seconds * 2**attempt, SILENT_SECONDS)
        _timeout.set(
            aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=silent
            )
        )
        try:
            return await request()
        except Exception as error:
            if attempt == _ATTEMPTS - 1 or not is_retriable(error):
                raise
        longest = _FIRST_WAIT_SECONDS * 2**attempt
        await asyncio.sleep(random.uniform(longest / 2, longest))


@contextlib.contextmanager
def _naming(address: str, parts: tuple[str, ...]) -> Iterator[None]:
    """Turns an error of a request into a StorageError, unless an object is missing."""
    try:
        yield
    except Exception as error:
        got, cure = _cause(error, of_object=len(parts) > 1 or "/o/" in address)
        if not got:
            raise
        detail = ""
        if not isinstance(error, FileNotFoundError):  # whose text is the address
            detail = ": " + " ".join(re.sub("^Forbidden: .*", "", str(error)).split())
        raise storage_errors.StorageError(
            f"wanted {_name(address, parts)}, got {got}{detail[:300]}; {cure}"
        ) from error


def _cause(error: Exception, *, of_object: bool) -> tuple[str, str]:
    """Returns what was got and its cure; two "" for an error of another kind."""
    if isinstance(error, FileNotFoundError):
        return ("", "") if of_object else _CURES[404]
    code = getattr(error, "code", None) if isinstance(error, HttpError) else None
    if isinstance(error, OSError) and str(error).startswith("Forbidden: "):
        code = 403
    if code in (403, 429) and _ABOUT_QUOTA.search(str(error)):
        code = 429
    if code is not None and str(code).isdigit():
        code = int(code)
        if code >= 500:
            return f"status {code} of the service", _LATER
        return _CURES.get(code, (f"status {code}", "see what it says"))
    if isinstance(error, requests.exceptions.ProxyError):  # gcsfs's word for it
        return "status 502 of the service", _LATER
    if isinstance(error, _OFFLINE):
        return "no connection", f"check this machine's network; {_LATER}"
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return _CURES[401]
    return "", ""


def _name(address: str, parts: tuple[str, ...]) -> str:
    """Returns gs://BUCKET/OBJECT of a request, as far as it names one."""
    if parts:
        return "gs://" + "/".join(parts)
    found = _OBJECT.search(address)
    if not found:
        return address
    name = f"gs://{found['bucket']}"
    if found["key"]:
        name += "/" + urllib.parse.unquote(found["key"])
    return name
