"""Credentials for Google Cloud Storage, as google-auth finds them: the application default ones of
a file, of the gcloud command line, or of the machine.

The only importer of google-auth, which the extra `gcs` installs.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from typing import Any

from lerobot_grain._base.errors import InvalidRequestError, StorageError
from lerobot_grain._storage.http.responses import cut, redact
from lerobot_grain._storage.objects.credentials import Anonymous, Credentials

INSTALL = "pip install 'lerobot_grain[gcs]'"
_MISSING = f"none: google-auth, which finds them, is not installed ({INSTALL})"
_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_only",)


class GoogleCredentials:
    """Those that google-auth has found."""

    def __init__(self, found: Any) -> None:
        self._found = found
        self._lock = threading.Lock()
        origin = _FILE if os.environ.get(_FILE) else "application default"
        self.source = f"Google ({origin}, {type(found).__module__.rpartition('.')[2]})"

    def is_fresh(self) -> bool:
        return bool(self._found.valid)

    def refresh(self) -> None:
        with self._lock:
            if self._found.valid:
                return
            from google.auth.transport.requests import Request

            try:
                self._found.refresh(Request())
            except Exception as error:  # of whatever service was asked
                raise _failure(error) from None

    def headers(self, url: str) -> dict[str, str]:  # noqa: ARG002 (the same for all)
        headers: dict[str, str] = {}
        self._found.apply(headers)
        return {name.title(): value for name, value in headers.items()}

    def secret(self) -> object:
        return self._found.token


def google_credentials(*, required: bool) -> Credentials:
    """Returns the credentials of the environment; `Anonymous` where there are none.

    Raises:
      InvalidRequestError: there must be some, and are none.
      StorageError: google-auth found some, and cannot get them.
    """
    if not _is_installed():
        if required:
            raise InvalidRequestError(f"credentials for Google Cloud Storage: {_MISSING}")
        return Anonymous(_MISSING)
    import google.auth

    try:
        found, _ = google.auth.default(scopes=_SCOPES)
    except Exception as error:  # of whatever service was asked
        is_missing = isinstance(error, google.auth.exceptions.DefaultCredentialsError)
        if is_missing and not os.environ.get(_FILE):
            if required:
                raise InvalidRequestError(
                    "token=True, but there are no credentials for Google Cloud Storage: set "
                    f'{_FILE} or run "gcloud auth application-default login"'
                ) from None
            return Anonymous(f"none: none were found ({_FILE}, gcloud)")
        raise _failure(error) from None
    credentials = GoogleCredentials(found)
    credentials.refresh()
    return credentials


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("google.auth") is not None
    except ModuleNotFoundError:
        return False


def _failure(error: Exception) -> StorageError:
    return StorageError(
        "the credentials for Google Cloud Storage cannot be got: "
        f"{type(error).__name__}: {cut(redact(str(error)))}"
    )
