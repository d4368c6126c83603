"""The Google Cloud Storage origin of the loopback Hub: `objects.list` and `objects.get` of its JSON
API.

Statuses and fields are those of Google's documentation. An object has one generation, which
changes with its contents.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, unquote

from lerobot_grain.testing._hub.buckets import Bucket
from lerobot_grain.testing._hub.http import Answer, Request, answer_file, with_headers
from lerobot_grain.testing._hub.model import StoredFile
from lerobot_grain.testing._stores.s3 import page_of

_JSON = {"Content-Type": "application/json; charset=UTF-8"}


class GcsOrigin:
    """Answers requests to the endpoint of Google Cloud Storage.

    Attributes:
      buckets: by name; the token of a private one is an OAuth access token.

    Args:
      tokens: of all known users.
      page_entries: of a page of a listing.
    """

    def __init__(self, tokens: set[str], page_entries: int) -> None:
        self.buckets: dict[str, Bucket] = {}
        self._tokens = tokens
        self._page_entries = page_entries

    def answer(self, request: Request) -> Answer:
        match request.raw_path.split("/")[1:]:
            case ["storage", "v1", "b", name, "o"]:
                return replace(self._answer(request, name, ""), kind="list")
            case ["storage", "v1", "b", name, "o", key]:
                return replace(self._answer(request, name, unquote(key)), kind="object")
        return _error(404, "Not Found")

    def _answer(self, request: Request, name: str, key: str) -> Answer:
        if request.method != "GET":
            return _error(405, "Method Not Allowed")
        bucket = self.buckets.get(name)
        if (refusal := self._refuse(request, bucket)) is not None:
            return refusal
        if bucket is None:
            return _error(404, "The specified bucket does not exist.")
        query = {field: values[0] for field, values in parse_qs(request.query).items()}
        if not key:
            return _listing(query, bucket, self._page_entries)
        if (file := bucket.files.get(key)) is None:
            return _error(404, f"No such object: {name}/{key}")
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != generation_of(file):
            text = "At least one of the pre-conditions you specified did not hold."
            return replace(_error(412, text), file=key)
        if query.get("alt") != "media":
            return Answer(200, _JSON, json.dumps(_entry(file)).encode(), file=key)
        answer = answer_file(request, file.whole, etag_of(file), "application/octet-stream")
        return replace(
            with_headers(answer, {"X-Goog-Generation": str(generation_of(file))}), file=key
        )

    def _refuse(self, request: Request, bucket: Bucket | None) -> Answer | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        is_private = bucket is not None and bucket.private
        if not scheme:
            text = "Anonymous caller does not have storage.objects.get access."
            return _error(401, text) if is_private else None
        if scheme != "Bearer" or token not in self._tokens:
            return _error(401, "Invalid Credentials")
        if is_private and (bucket is None or token != bucket.token):
            return _error(403, "The caller does not have storage.objects.get access.")
        return None


def generation_of(file: StoredFile) -> int:
    """Returns the generation of an object: as long as a real one, which is a time in
    microseconds.
    """
    return int(file.sha256[:12], 16)


def etag_of(file: StoredFile) -> str:
    """Returns the entity tag of an object, with its quotes."""
    return f'"{file.sha256[:16]}"'


def _entry(file: StoredFile) -> dict[str, Any]:
    return {
        "kind": "storage#object",
        "name": file.path,
        "size": str(file.size_bytes),
        "generation": str(generation_of(file)),
        "md5Hash": base64.b64encode(bytes.fromhex(file.sha256[:32])).decode(),
    }


def _listing(query: dict[str, str], bucket: Bucket, page_entries: int) -> Answer:
    keys, folders, following = page_of(
        bucket.files,
        prefix=query.get("prefix", ""),
        delimiter=query.get("delimiter", ""),
        after=query.get("pageToken", ""),
        page_entries=min(page_entries, int(query.get("maxResults", "1000"))),
    )
    values: dict[str, Any] = {"kind": "storage#objects"}
    if keys:
        values["items"] = [_entry(bucket.files[key]) for key in keys]
    if folders:
        values["prefixes"] = folders
    if following:
        values["nextPageToken"] = following
    return Answer(200, _JSON, json.dumps(values).encode())


def _error(status: int, message: str) -> Answer:
    return Answer(
        status, _JSON, json.dumps({"error": {"code": status, "message": message}}).encode()
    )
