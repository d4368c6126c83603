"""Google Cloud Storage, by its JSON API: addresses, listings and errors.

Sources: Google's reference of the JSON API, `objects.list` and `objects.get`. Objects are pinned by
their generation: `ifGenerationMatch` lets the store answer for no other one.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from lerobot_grain._base.arguments import is_token
from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._storage.http.responses import Response, checked_endpoint, cut
from lerobot_grain._storage.objects.address import (
    ListedObject,
    Page,
    StoreAddress,
    listed_bytes,
    parts_of,
)
from lerobot_grain._storage.objects.credentials import Anonymous, BearerToken, Credentials
from lerobot_grain._storage.objects.google_credentials import google_credentials
from lerobot_grain._storage.options import StorageOptions

GCS_SCHEME = "gs://"
_ENDPOINT = "https://storage.googleapis.com"
# As Google's own libraries read it.
_EMULATOR = "STORAGE_EMULATOR_HOST"
_FIELDS = "items(name,size,generation,md5Hash,crc32c),prefixes,nextPageToken"


@dataclasses.dataclass(frozen=True, slots=True)
class GcsAddress(StoreAddress):
    """Names a dataset in a bucket of Google Cloud Storage.

    Attributes:
      is_emulator: whether the environment names the endpoint of an emulator, which is asked
        anonymously.
    """

    scheme = GCS_SCHEME
    extra = "gcs"

    is_emulator: bool = False

    def find_credentials(self) -> Credentials:
        if isinstance(self.token, str):
            return BearerToken(self.token)
        if self.token is False:
            return Anonymous("none: token=False")
        if self.token is None and self.is_emulator:
            return Anonymous(f"none: {_EMULATOR} is set")
        if not self.endpoint.startswith("https:"):
            # Whoever listens could use the token of the environment elsewhere.
            if self.token is True:
                raise InvalidRequestError(
                    f"token=True, but credentials of the environment are not sent to "
                    f"{self.endpoint}, which is not encrypted; pass an access token as token="
                )
            return Anonymous(f"none: {self.endpoint} is not encrypted")
        return google_credentials(required=self.token is True)

    @property
    def _bucket_url(self) -> str:
        return f"{self.endpoint}/storage/v1/b/{self.bucket}/o"

    def list_url(self, folder: str, following: str, *, recursive: bool = True) -> str:
        query = {
            "prefix": self.prefix + folder,
            "fields": _FIELDS,
            "maxResults": "1000",
            **({} if recursive else {"delimiter": "/"}),
            **({"pageToken": following} if following else {}),
        }
        return f"{self._bucket_url}?{urlencode(query, quote_via=quote, safe='')}"

    def object_url(self, file: ListedObject) -> str:
        name = quote(self.prefix + file.path, safe="")
        return f"{self._bucket_url}/{name}?alt=media&ifGenerationMatch={file.pin}"

    def condition(self, file: ListedObject) -> Mapping[str, str]:  # noqa: ARG002 (it is in the address)
        return {}

    def parse_page(self, body: bytes) -> Page:
        try:
            values = json.loads(body)
            objects = [_listed(entry) for entry in values.get("items", [])]
            folders = [str(each) for each in values.get("prefixes", [])]
            following = str(values.get("nextPageToken") or "")
        except (AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(type(error).__name__) from None
        return Page(objects, folders, following)

    def version_in(self, answer: Response) -> str | None:
        return answer.headers.get("X-Goog-Generation")

    def code_in(self, body: bytes) -> str:
        try:
            told = json.loads(body)["error"]["message"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""
        return cut(str(told))


def name_gcs(
    uri: str,
    *,
    revision: str | None,
    endpoint: str | None,
    token: str | bool | None,
    options: StorageOptions,
    cache_root: str,
) -> GcsAddress:
    """Returns a checked `GcsAddress` of `gs://bucket/prefix`; what is None is taken from the
    environment.

    Raises:
      InvalidRequestError: no such bucket, endpoint or token can exist, or a revision is asked for.
    """
    bucket, prefix = parts_of(uri, GCS_SCHEME, revision=revision)
    if isinstance(token, str) and (not is_token(token) or " " in token):
        raise InvalidRequestError(
            f"{uri}: token: expected an OAuth access token; pass None for the credentials of the "
            "environment"
        )
    emulator = os.environ.get(_EMULATOR, "")
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    chosen = checked_endpoint(
        endpoint or emulator or _ENDPOINT, of="an object store", example=_ENDPOINT
    )
    return GcsAddress(
        bucket,
        prefix,
        chosen,
        token,
        options,
        cache_root,
        is_emulator=bool(emulator) and endpoint is None,
    )


def _listed(entry: Mapping[str, Any]) -> ListedObject:
    generation = str(entry["generation"])
    if not (generation.isascii() and generation.isdecimal()):
        raise ValueError("a generation that is no number")
    # The hash, because it stays the same where a bucket is copied. One that was composed of others
    # has no MD5.
    contents = entry.get("md5Hash") or entry.get("crc32c") or generation
    size_bytes = listed_bytes(entry["size"])
    return ListedObject(str(entry["name"]), size_bytes, generation, str(contents))
