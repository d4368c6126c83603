"""Credentials for S3, as botocore finds them: the environment, the files of the AWS command line,
web identities, single sign-on, and the services of containers and machines.

The only importer of botocore, which the extra `s3` installs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import threading
import time
from typing import Any

from lerobot_grain._base.errors import InvalidRequestError, StorageError
from lerobot_grain._storage.http.responses import cut, redact
from lerobot_grain._storage.objects.credentials import Anonymous, Credentials

INSTALL = "pip install 'lerobot_grain[s3]'"
# Credentials that run out within 15 minutes are asked for again no more often than this, and are
# used until they have only so long left.
_PAUSE_SECONDS = 60
_MISSING = f"none: botocore, which finds them, is not installed ({INSTALL})"


class AwsCredentials:
    """Those that botocore has found; signs with Signature Version 4.

    Args:
      found: botocore's.
      region: in which requests are signed.
    """

    def __init__(self, found: Any, region: str) -> None:
        self._found = found
        self._region = region
        self._frozen: Any = None
        self._asked_at = -math.inf
        method = getattr(found, "method", None) or "unknown"
        profile = os.environ.get("AWS_PROFILE")
        self.source = f"AWS ({method}{f', profile {profile}' if profile else ''})"

    def is_fresh(self) -> bool:
        needed = getattr(self._found, "refresh_needed", None)
        is_asked = time.monotonic() < self._asked_at + _PAUSE_SECONDS
        return self._is_usable() and (needed is None or not needed() or is_asked)

    def refresh(self) -> None:
        """Gets new ones; nobody waits for them, or is told that there are none, as long as those
        that are known can be used.
        """
        self._asked_at = time.monotonic()
        if not self._is_usable():
            self._get()
            return
        threading.Thread(
            target=self._try_to_get, name="lerobot_grain credentials", daemon=True
        ).start()

    def _is_usable(self) -> bool:
        needed = getattr(self._found, "refresh_needed", None)
        return self._frozen is not None and (needed is None or not needed(_PAUSE_SECONDS))

    def _try_to_get(self) -> None:
        with contextlib.suppress(StorageError):
            self._get()

    def _get(self) -> None:
        try:
            self._frozen = self._found.get_frozen_credentials()
        except Exception as error:  # of whatever service was asked
            raise _failure(error) from None

    def headers(self, url: str) -> dict[str, str]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        request = AWSRequest("GET", url)
        # The host and the time are signed, too. A range need not be: it is checked in the answer.
        S3SigV4Auth(self._frozen, "s3", self._region).add_auth(request)
        return {name: _text(value) for name, value in request.headers.items()}

    def secret(self) -> object:
        return self._frozen


def aws_settings() -> tuple[str, str]:
    """Returns the region and the endpoint that the profile of the AWS command line has; empty where
    it has none, or botocore is not installed.

    Raises:
      InvalidRequestError: there is no such profile, or its file is malformed.
    """
    if not _is_installed():
        return "", ""
    from botocore.exceptions import BotoCoreError
    from botocore.session import get_session

    try:
        session = get_session()
        region = session.get_config_variable("region")
        return region or "", session.get_scoped_config().get("endpoint_url", "")
    except BotoCoreError as error:
        raise InvalidRequestError(f"the settings for S3: {cut(str(error))}") from None


def aws_credentials(region: str, *, required: bool) -> Credentials:
    """Returns the credentials of the environment; `Anonymous` where there are none.

    Raises:
      InvalidRequestError: there must be some, and are none.
      StorageError: botocore found some, and cannot get them.
    """
    if not _is_installed():
        if required:
            raise InvalidRequestError(f"credentials for S3: {_MISSING}")
        return Anonymous(_MISSING)
    from botocore.session import get_session

    try:
        found = get_session().get_credentials()
    except Exception as error:  # of whatever service was asked
        raise _failure(error) from None
    if found is None:
        if required:
            raise InvalidRequestError(
                "token=True, but there are no credentials for S3: set AWS_PROFILE, or "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        return Anonymous("none: none were found (AWS_PROFILE, AWS_ACCESS_KEY_ID, ...)")
    credentials = AwsCredentials(found, region)
    credentials.refresh()
    return credentials


def _is_installed() -> bool:
    return importlib.util.find_spec("botocore") is not None


def _failure(error: Exception) -> StorageError:
    return StorageError(
        f"the credentials for S3 cannot be got: {type(error).__name__}: {cut(redact(str(error)))}"
    )


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value
