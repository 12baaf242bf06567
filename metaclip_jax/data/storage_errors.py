"""What Cloud Storage refused; without gcsfs, so that all can import it."""

import errno
import re

# How C++ libraries, array_record's and tensorstore, name what is not the file's fault.
_STATUS = re.compile(
    r"\b(PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|RESOURCE_EXHAUSTED"
    r"|DEADLINE_EXCEEDED|ABORTED)\b"
)


class StorageError(OSError):
    """Cloud Storage refused a request, or was not reached.

    Its errno says that no file's content is to blame.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.EREMOTEIO


def refusal(error: object) -> str:
    """Returns the status by which a C++ library says that storage refused; else ""."""
    found = _STATUS.search(str(error))
    return found[0] if found else ""
