"""The CDN origin of the loopback Hub: signed URLs, and the ranges of their files.

The URLs look like those of the real one (read in public logs of 2026):
`/xet-bridge-us/<hash>/<hash>?X-Amz-Expires=3600&... &Expires=<epoch>&Policy=...&Signature=...`. As
there, one URL serves any range until it expires, names no file, and needs no Authorization.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import replace

from lerobot_grain.testing._hub.http import Answer, Request, answer_file, with_headers, xml_error
from lerobot_grain.testing._hub.model import StoredFile

URL_LIFETIME_SECONDS = 3600  # That of the real Hub.


class CdnOrigin:
    """Signs URLs for the hub origin and answers the requests for them.

    `origin` is `"http://host:port"`.
    """

    def __init__(self, origin: str) -> None:
        self.url_lifetime_seconds = URL_LIFETIME_SECONDS
        self._origin = origin
        self._key = secrets.token_bytes(32)
        self._generation = 0
        self._files: dict[str, StoredFile] = {}

    def expire_urls(self) -> None:
        """Makes every URL that was signed so far count as expired."""
        self._generation += 1

    def sign(self, repository_id: str, file: StoredFile, user: str) -> str:
        """Returns a URL for `file`, valid from now on for `url_lifetime_seconds`."""
        # The path of the file is hashed in, as the real CDN does not, so that a request can be
        # logged under it even if two files are equal.
        blob = hashlib.sha256(f"{file.path}\0{file.sha256}".encode()).hexdigest()
        path = f"/xet-bridge-us/{hashlib.sha1(repository_id.encode()).hexdigest()[:24]}/{blob}"
        self._files[path] = file
        expires = int(time.time()) + self.url_lifetime_seconds
        policy = {
            "Statement": [
                {
                    "Condition": {"DateLessThan": {"AWS:EpochTime": expires}},
                    "Resource": self._origin + path,
                }
            ]
        }
        encoded = base64.urlsafe_b64encode(json.dumps(policy).encode()).decode().rstrip("=")
        target = (
            f"{path}?X-Amz-Expires={self.url_lifetime_seconds}&X-Amz-SignedHeaders=host"
            f"&X-Xet-Cas-Uid={user}&Expires={expires}"
            f"&Policy={encoded}&Key-Pair-Id=K{self._generation}"
        )
        return f"{self._origin}{target}&Signature={self._signature(target)}"

    def answer(self, request: Request) -> Answer:
        file = self._files.get(request.raw_path)
        return replace(self._answer(request, file), kind="cdn", file=file.path if file else None)

    def _answer(self, request: Request, file: StoredFile | None) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return xml_error(
                405, "MethodNotAllowed", "The specified method is not allowed against this resource"
            )
        target, _, signature = request.target.partition("&Signature=")
        if not hmac.compare_digest(signature.encode(), self._signature(target).encode()):
            return xml_error(403, "SignatureError", "The signature does not match the URL")
        fields = dict(pair.partition("=")[::2] for pair in request.query.split("&"))
        if time.time() >= int(fields["Expires"]) or fields["Key-Pair-Id"] != f"K{self._generation}":
            return xml_error(403, "AccessDenied", "Request has expired")
        if file is None:
            return xml_error(404, "NoSuchKey", "The specified key does not exist")
        # Not the sha256 of X-Linked-ETag: the real CDN promises no connection between the two.
        answer = answer_file(
            request, file.whole, f'"{file.sha256[:32]}"', "application/octet-stream"
        )
        return with_headers(
            answer, {"Cache-Control": "public, max-age=31536000", "X-Cache": "Hit from cloudfront"}
        )

    def _signature(self, target: str) -> str:
        return hmac.digest(self._key, target.encode(), "sha256").hex()
