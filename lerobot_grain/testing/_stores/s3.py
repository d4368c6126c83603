"""The S3 origin of the loopback Hub: `ListObjectsV2` and `GetObject`, with addresses whose path
begins with the bucket, as MinIO and other servers have them.

Statuses, codes and headers are those of Amazon's documentation. Keys are listed as `encoding-type`
asks for. There are no versions, no checksums and no regions: any region is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import parse_qs, quote_plus, unquote
from xml.sax.saxutils import escape

from lerobot_grain.testing._hub.buckets import Bucket
from lerobot_grain.testing._hub.http import Answer, Request, answer_file, with_headers, xml_error
from lerobot_grain.testing._hub.model import StoredFile, date_text
from lerobot_grain.testing._stores.signatures import signing_key_id, signs

_XML = {"Content-Type": "application/xml"}


class S3Origin:
    """Answers requests to the S3 endpoint.

    Attributes:
      buckets: by name; the token of a private one is `KEY_ID:SECRET`.

    Args:
      tokens: of all known users; those of S3 are `KEY_ID:SECRET`.
      page_entries: of a page of a listing.
    """

    def __init__(self, tokens: set[str], page_entries: int) -> None:
        self.buckets: dict[str, Bucket] = {}
        self._tokens = tokens
        self._page_entries = page_entries
        self._request_number = 0

    def answer(self, request: Request) -> Answer:
        _, name, *rest = request.raw_path.split("/", 2)
        key = unquote("/".join(rest))
        self._request_number += 1
        answer = replace(self._answer(request, name, key), kind="object" if key else "list")
        return with_headers(
            answer, {"x-amz-request-id": f"{self._request_number:016X}", "Server": "loopback S3"}
        )

    def _answer(self, request: Request, name: str, key: str) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return xml_error(405, "MethodNotAllowed", "The method is not allowed here")
        bucket = self.buckets.get(name)
        if (refusal := self._refuse(request, bucket)) is not None:
            return refusal
        if bucket is None:
            return xml_error(404, "NoSuchBucket", "The specified bucket does not exist")
        if not key:
            return _listing(request, bucket, self._page_entries)
        if (file := bucket.files.get(key)) is None:
            return xml_error(404, "NoSuchKey", "The specified key does not exist.")
        answer = answer_file(request, file.whole, etag_of(file), "binary/octet-stream")
        return replace(answer, file=file.path)

    def _refuse(self, request: Request, bucket: Bucket | None) -> Answer | None:
        is_private = bucket is not None and bucket.private
        if "authorization" not in request.headers:
            return xml_error(403, "AccessDenied", "Access Denied") if is_private else None
        key_id = signing_key_id(request)
        token = next((each for each in self._tokens if each.partition(":")[0] == key_id), None)
        if token is None:
            return xml_error(
                403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist"
            )
        if not signs(request, token.partition(":")[2]):
            return xml_error(
                403, "SignatureDoesNotMatch", "The request signature does not match the secret key"
            )
        if is_private and (bucket is None or token != bucket.token):
            return xml_error(403, "AccessDenied", "Access Denied")
        return None


def etag_of(file: StoredFile) -> str:
    """Returns the entity tag of an object, with its quotes."""
    return f'"{file.sha256[:32]}"'


def page_of(
    files: Mapping[str, StoredFile], *, prefix: str, delimiter: str, after: str, page_entries: int
) -> tuple[list[str], list[str], str]:
    """Returns the keys and the common prefixes on one page of a listing, and where the next one
    goes on; empty: it is the last one.

    Args:
      files: of the bucket.
      prefix: of the keys that are listed.
      delimiter: what comes after it up to here is listed once; empty: every key is.
      after: what the page before ended with, or empty.
      page_entries: of a page.
    """
    shown: dict[str, bool] = {}
    for key in sorted(key for key in files if key.startswith(prefix)):
        folder, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        entry = f"{prefix}{folder}{found}" if found else key
        if entry > after:
            shown.setdefault(entry, bool(found))
    page = list(shown)[:page_entries]
    following = page[-1] if len(shown) > len(page) else ""
    return (
        [entry for entry in page if not shown[entry]],
        [entry for entry in page if shown[entry]],
        following,
    )


def _listing(request: Request, bucket: Bucket, page_entries: int) -> Answer:
    query = {name: values[0] for name, values in parse_qs(request.query).items()}
    if query.get("list-type") != "2":
        return xml_error(501, "NotImplemented", "Only ListObjectsV2 is implemented")
    is_quoted = query.get("encoding-type") == "url"

    def shown(text: str) -> str:
        return quote_plus(text, safe="/") if is_quoted else escape(text)

    keys, folders, following = page_of(
        bucket.files,
        prefix=query.get("prefix", ""),
        delimiter=query.get("delimiter", ""),
        after=query.get("continuation-token", ""),
        page_entries=min(page_entries, int(query.get("max-keys", "1000"))),
    )
    lines = ["<EncodingType>url</EncodingType>"] if is_quoted else []
    for key in keys:
        file = bucket.files[key]
        lines.append(
            f"<Contents><Key>{shown(key)}</Key><LastModified>{date_text(file.mtime_ns)}"
            f"</LastModified><ETag>{escape(etag_of(file))}</ETag><Size>{file.size_bytes}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )
    lines += [
        f"<CommonPrefixes><Prefix>{shown(each)}</Prefix></CommonPrefixes>" for each in folders
    ]
    if following:
        token = escape(following)
        lines.append(f"<NextContinuationToken>{token}</NextContinuationToken>")
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{escape(bucket.repository_id)}</Name>"
        f"<IsTruncated>{str(bool(following)).lower()}</IsTruncated>{''.join(lines)}"
        "</ListBucketResult>"
    )
    return Answer(200, _XML, text.encode())
