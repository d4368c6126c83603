"""Checks AWS Signature Version 4 of a request: written by its specification, so that a client that
signs in another way is found.

Source: "Create a signed AWS API request" in Amazon's IAM user guide, with the exceptions for S3: a
path is not encoded twice, and the hash of the payload is a header.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import parse_qsl, quote

from lerobot_grain.testing._hub.http import Request

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, *"
    r"SignedHeaders=([^,]+), *Signature=([0-9a-f]{64})"
)


def signing_key_id(request: Request) -> str:
    """Returns the id of the key that signs a request; empty if it is not signed like that."""
    found = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    return found[1] if found else ""


def signs(request: Request, secret: str) -> bool:
    """Returns whether a request is signed with a secret key."""
    found = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if found is None:
        return False
    _, date, region, names, signature = found.groups()
    pairs = parse_qsl(request.query, keep_blank_values=True)
    query = "&".join(
        sorted(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs)
    )
    signed = [f"{name}:{request.headers.get(name, '')}\n" for name in names.split(";")]
    payload = request.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    canonical = "\n".join(
        [request.method, request.raw_path, query, "".join(signed), names, payload]
    )
    scope = f"{date}/{region}/s3/aws4_request"
    text = "\n".join(
        [
            "AWS4-HMAC-SHA256",
            request.headers.get("x-amz-date", ""),
            scope,
            hashlib.sha256(canonical.encode()).hexdigest(),
        ]
    )
    key = f"AWS4{secret}".encode()
    for part in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), signature)
