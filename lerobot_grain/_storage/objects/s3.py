"""Amazon S3, and what speaks its language: addresses, listings (`ListObjectsV2`) and errors.

Sources: Amazon's API reference of S3. Objects are pinned by their entity tag: `If-Match` lets the
store answer for no other version.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Self
from urllib.parse import quote, unquote_plus, urlencode
from xml.etree import ElementTree

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._storage.http.responses import Response, checked_endpoint, cut
from lerobot_grain._storage.objects.address import (
    ListedObject,
    Page,
    StoreAddress,
    listed_bytes,
    parts_of,
)
from lerobot_grain._storage.objects.aws_credentials import aws_credentials, aws_settings
from lerobot_grain._storage.objects.credentials import Anonymous, Credentials
from lerobot_grain._storage.options import StorageOptions

S3_SCHEME = "s3://"
# The first guess for a bucket whose region nobody gave; the store then names it.
_FIRST_REGION = "us-east-1"
_REGION_HEADER = "x-amz-bucket-region"
# What a region answers for a bucket in one that must be switched on first. It names no region where
# a program could read it.
_OTHER_REGION = "IllegalLocationConstraintException"
# Buckets whose name can be part of the name of a host: hosts have no capitals, and a name with dots
# does not fit into the certificate of the store.
_HOST_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


@dataclasses.dataclass(frozen=True, slots=True)
class S3Address(StoreAddress):
    """Names a dataset in a bucket of S3.

    Attributes:
      region: in which it lies, as far as is known.
      is_amazon: whether the store is Amazon's, where the endpoint follows from the region.
      region_is_told: whether the region is one that the user chose, and no other is tried.
    """

    scheme = S3_SCHEME
    extra = "s3"

    region: str = _FIRST_REGION
    is_amazon: bool = False
    region_is_told: bool = False

    def find_credentials(self) -> Credentials:
        if self.token is False:
            return Anonymous("none: token=False")
        return aws_credentials(self.region, required=self.token is True)

    @property
    def _bucket_url(self) -> str:
        if self.is_amazon and _HOST_LABEL.fullmatch(self.bucket):
            scheme, _, host = self.endpoint.partition("://")
            return f"{scheme}://{self.bucket}.{host}"
        return f"{self.endpoint}/{self.bucket}"

    def list_url(self, folder: str, following: str, *, recursive: bool = True) -> str:
        query = {
            "encoding-type": "url",
            "list-type": "2",
            "prefix": self.prefix + folder,
            **({} if recursive else {"delimiter": "/"}),
            **({"continuation-token": following} if following else {}),
        }
        return f"{self._bucket_url}/?{urlencode(query, quote_via=quote, safe='')}"

    def object_url(self, file: ListedObject) -> str:
        return f"{self._bucket_url}/{quote(self.prefix + file.path, safe='/~')}"

    def condition(self, file: ListedObject) -> Mapping[str, str]:
        return {"If-Match": f'"{file.pin}"'}

    def parse_page(self, body: bytes) -> Page:
        root = _root(body)
        if root is None or _tag(root) != "ListBucketResult":
            raise ValueError("no ListBucketResult")
        texts = {_tag(each): each.text or "" for each in root}
        is_quoted = texts.get("EncodingType") == "url"
        objects = []
        folders = []
        for each in root:
            fields = {_tag(field): field.text or "" for field in each}
            name = fields.get("Key", fields.get("Prefix", ""))
            name = unquote_plus(name) if is_quoted else name
            if _tag(each) == "Contents":
                pin = _tag_in(fields.get("ETag", ""))
                if not pin.isascii() or not pin.isprintable():
                    raise ValueError("an ETag that is none")
                objects.append(ListedObject(name, listed_bytes(fields["Size"]), pin, pin))
            elif _tag(each) == "CommonPrefixes":
                folders.append(name)
        following = ""
        if texts.get("IsTruncated", "").strip().lower() in ("true", "1"):
            following = texts["NextContinuationToken"]
            if not following:
                raise ValueError("a list that goes on nowhere")
        return Page(objects, folders, following)

    def version_in(self, answer: Response) -> str | None:
        etag = answer.headers.get("ETag")
        return None if etag is None else _tag_in(etag)

    def code_in(self, body: bytes) -> str:
        root = _root(body)
        found = None if root is None else root.findtext("Code")
        return cut(found or "")

    def moved(self, answer: Response, body: bytes) -> tuple[Self | None, str]:
        root = _root(body)
        told = None if root is None else root.findtext("Region")
        region = answer.headers.get(_REGION_HEADER) or told or ""
        is_unnamed = answer.status == 400 and self.code_in(body) == _OTHER_REGION
        # Some servers name their region in every error.
        is_elsewhere = (
            answer.status in (301, 307) or is_unnamed or (answer.status == 400 and told is not None)
        )
        if is_unnamed and not region:
            return None, (
                f"the bucket lies in another region than {self.region}, where it was asked for: "
                "set AWS_REGION to its region"
            )
        if not is_elsewhere or region == self.region or not region.replace("-", "").isalnum():
            return None, ""
        if self.region_is_told or not self.is_amazon:
            return None, (
                f"the bucket lies in the region {cut(region)}, and was asked for in "
                f"{self.region}: set AWS_REGION={cut(region)}"
            )
        return dataclasses.replace(self, region=region, endpoint=_amazon(region)), ""


def name_s3(
    uri: str,
    *,
    revision: str | None,
    endpoint: str | None,
    token: str | bool | None,
    options: StorageOptions,
    cache_root: str,
) -> S3Address:
    """Returns a checked `S3Address` of `s3://bucket/prefix`; what is None is taken from the
    environment and the profile of the AWS command line.

    Raises:
      InvalidRequestError: no such bucket, endpoint, profile or token can exist, or a revision is
        asked for.
    """
    bucket, prefix = parts_of(uri, S3_SCHEME, revision=revision)
    if isinstance(token, str):
        raise InvalidRequestError(
            f"{uri}: a token says nothing to S3: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and leave it out; or pass token=False"
        )
    of_profile = ("", "") if token is False else aws_settings()
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or of_profile[0]
    chosen = (
        endpoint
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or of_profile[1]
    )
    return S3Address(
        bucket,
        prefix,
        checked_endpoint(
            chosen or _amazon(region or _FIRST_REGION),
            of="an object store",
            example="http://localhost:9000",
        ),
        token,
        options,
        cache_root,
        region=region or _FIRST_REGION,
        is_amazon=not chosen,
        region_is_told=bool(region),
    )


def _amazon(region: str) -> str:
    return f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")


def _root(body: bytes) -> ElementTree.Element | None:
    """Returns an answer as XML, or None if it is none."""
    try:
        return ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError, LookupError):  # the last two: of its encoding
        return None


def _tag_in(etag: str) -> str:
    """Returns an entity tag without its quotes, and without what a proxy that compresses marks it
    with.
    """
    return etag.removeprefix("W/").strip('"')


def _tag(element: ElementTree.Element) -> str:
    """Returns a name without its namespace, which not every server gives."""
    return element.tag.rpartition("}")[2]
