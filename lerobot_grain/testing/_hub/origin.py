"""The hub origin of the loopback Hub: the API and the resolver of dataset repositories and buckets,
and small files.

Headers, status codes and error codes are those of huggingface.co, as huggingface_hub 2.4 reads
them. Intended differences:

* No Link header with `rel="xet-auth"`, so that clients download over plain HTTP whether hf_xet is
  installed or not. (Of files in buckets there is one, because huggingface_hub insists on it; where
  it leads to is not there.)
* The rate limits are announced, but counted and enforced only after `limit_rate`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlencode

from lerobot_grain.testing._hub.buckets import Bucket
from lerobot_grain.testing._hub.cdn import CdnOrigin
from lerobot_grain.testing._hub.http import Answer, Request, answer_file, with_headers
from lerobot_grain.testing._hub.messages import RequestKind
from lerobot_grain.testing._hub.model import Commit, Repository, StoredFile

# Requests per window of an anonymous client, and the window: huggingface.co's table of September
# 2025.
QUOTAS = {"api": 500, "resolvers": 3000}
WINDOW_SECONDS = 300
# With expand=true the real Hub lists at most so many entries a page.
EXPANDED_PAGE_ENTRIES = 50
# Repositories that only some tokens may see.
_Closable = TypeVar("_Closable", Repository, Bucket)
_JSON = {"Content-Type": "application/json; charset=utf-8"}
_REDIRECT = {"Vary": "Origin, Accept", "Content-Type": "text/plain; charset=utf-8"}


class RefusalError(Exception):
    """Ends the handling of a request with an error answer.

    `code` becomes X-Error-Code, on which huggingface_hub chooses the exception.
    """

    def __init__(
        self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        # A revision or a path from the URL may be in the message: nothing of it may end the header.
        text = "".join(c if " " <= c <= "~" else "?" for c in message)
        named = ({"X-Error-Code": code} if code else {}) | {"X-Error-Message": text}
        self.answer = Answer(
            status, _JSON | named | (headers or {}), json.dumps({"error": message}).encode()
        )


@dataclass(slots=True)
class _Window:
    """A fixed window of one rate limit."""

    quota: int
    window_seconds: float
    left: int
    ends_at_seconds: float


class HubOrigin:
    """Answers requests to the hub.

    `endpoint` is `"http://host:port"`; `page_entries` is the length of a page of the tree.
    """

    def __init__(self, endpoint: str, cdn: CdnOrigin, page_entries: int) -> None:
        self.repositories: dict[str, Repository] = {}
        self.buckets: dict[str, Bucket] = {}
        self.tokens: set[str] = set()
        self._endpoint = endpoint
        self._cdn = cdn
        self._page_entries = page_entries
        self._windows: dict[str, _Window] = {}
        self._request_number = 0

    def limit_rate(self, bucket: str, quota: int, window_seconds: float) -> None:
        """Counts the requests of `bucket` ("api" or "resolvers") and answers 429 once there were
        `quota` in a window.
        """
        self._windows[bucket] = _Window(quota, window_seconds, quota, 0.0)

    def answer(self, request: Request) -> Answer:
        segments = request.raw_path.split("/")[1:]
        kind: RequestKind = "other"
        match segments:
            case ["datasets", _, _, "resolve", _, _, *_] | ["buckets", _, _, "resolve", _, *_]:
                kind = "resolver"
            case ["api", "resolve-cache", "datasets", _, _, _, _, *_]:
                kind = "git_file"
            case ["api", "datasets" | "buckets", _, _, *_]:
                kind = "api"
        headers = self._common_headers(request)
        try:
            headers |= self._count("resolvers" if kind == "resolver" else "api")
            answer = self._route(request, kind, segments)
        except RefusalError as refusal:
            answer = refusal.answer
        return replace(with_headers(answer, headers), kind=kind)

    def _common_headers(self, request: Request) -> dict[str, str]:
        self._request_number += 1
        headers = {
            "X-Request-Id": f"Root=1-{int(time.time()):08x}-{self._request_number:024x}",
            "Accept-Ranges": "bytes",
        }
        if "authorization" not in request.headers:
            headers["X-HF-Warning"] = (
                "unauthenticated; You are sending unauthenticated requests to a loopback Hub."
            )
        return headers

    def _count(self, bucket: str) -> dict[str, str]:
        window = self._windows.get(bucket)
        now = time.monotonic()
        if window is None:
            return _rate_headers(
                bucket, QUOTAS[bucket], QUOTAS[bucket], WINDOW_SECONDS, WINDOW_SECONDS
            )
        if now >= window.ends_at_seconds:
            window.left = window.quota
            window.ends_at_seconds = now + window.window_seconds
        refused = window.left == 0
        window.left = max(0, window.left - 1)
        headers = _rate_headers(
            bucket, window.left, window.quota, window.ends_at_seconds - now, window.window_seconds
        )
        if refused:
            raise RefusalError(
                429,
                None,
                f"We had to rate limit you ({window.quota} '{bucket}' requests).",
                headers,
            )
        return headers

    def _route(self, request: Request, kind: RequestKind, segments: list[str]) -> Answer:
        is_paths_info = kind == "api" and segments[4:5] == ["paths-info"]
        if request.method not in (("POST",) if is_paths_info else ("GET", "HEAD")):
            raise RefusalError(405, None, f"Method {request.method} is not allowed here")
        if kind == "other":
            raise RefusalError(404, None, "Sorry, we can't find the page you are looking for.")
        at = {"resolver": 1, "api": 2, "git_file": 3}[kind]
        repository_id = "/".join(map(unquote, segments[at : at + 2]))
        rest = segments[at + 2 :]
        if segments[at - 1] == "buckets":
            bucket = self._find(request, self.buckets, repository_id)
            return (
                self._resolve_in_bucket(request, bucket, rest[1:])
                if kind == "resolver"
                else self._answer_bucket(request, bucket, rest)
            )
        repository = self._find(request, self.repositories, repository_id)
        if kind == "api":
            return self._answer_api(request, repository, rest)
        if repository.gated:
            _refuse_gated(request, repository)
        if kind == "resolver":
            return self._resolve(request, repository, unquote(rest[1]), unquote("/".join(rest[2:])))
        commit = _find_commit(repository, unquote(rest[0]))
        return _answer_git_file(request, commit, _find_file(commit, unquote("/".join(rest[1:]))))

    def _find(
        self, request: Request, among: Mapping[str, _Closable], repository_id: str
    ) -> _Closable:
        token = _token(request)
        if token is not None and token not in self.tokens:
            raise RefusalError(401, None, "Invalid credentials in Authorization header")
        repository = among.get(repository_id)
        if repository is not None and (
            not repository.private or (token is not None and token == repository.token)
        ):
            return repository
        # Whether a private repository exists is not told; an anonymous client is asked to log in.
        status, message = (
            (401, "Invalid username or password.")
            if token is None
            else (404, "Repository not found")
        )
        raise RefusalError(status, "RepoNotFound", message)

    def _answer_api(self, request: Request, repository: Repository, rest: list[str]) -> Answer:
        match rest:
            case []:
                return _answer_information(request, repository, "main")
            case ["revision", revision]:
                return _answer_information(request, repository, unquote(revision))
            case ["refs"]:
                return _answer_json(_references(repository))
            case ["auth-check"]:
                if repository.gated:
                    _refuse_gated(request, repository)
                return _answer_json({})
            case ["tree", revision, *path]:
                return self._answer_tree(
                    request, _find_commit(repository, unquote(revision)), unquote("/".join(path))
                )
            case ["paths-info", revision]:
                commit = _find_commit(repository, unquote(revision))
                wanted = parse_qs(request.body.decode("utf-8", "replace")).get("paths", [])
                known = [
                    path for path in wanted if path in commit.files or path in commit.directories
                ]
                return _answer_json(
                    [commit.tree_entry(path) for path in known], {"X-Repo-Commit": commit.sha}
                )
        raise RefusalError(404, None, "Sorry, we can't find the page you are looking for.")

    def _answer_tree(self, request: Request, commit: Commit, directory: str) -> Answer:
        if directory and directory not in commit.directories:
            raise RefusalError(
                404,
                "EntryNotFound",
                f"{directory} does not exist on this revision",
                {"X-Repo-Commit": commit.sha},
            )
        paths = commit.paths_under(directory, recursive=_is_set(request, "recursive"))
        expanded = _is_set(request, "expand")
        page, headers = self._page(
            request,
            min(self._page_entries, EXPANDED_PAGE_ENTRIES) if expanded else self._page_entries,
            len(paths),
        )
        return _answer_json(
            [commit.tree_entry(path) for path in paths[page]],
            headers | {"X-Repo-Commit": commit.sha},
        )

    def _page(
        self, request: Request, page_entries: int, num_entries: int
    ) -> tuple[slice, dict[str, str]]:
        """Returns which entries of a listing are on the page that is asked for, and the Link to the
        next one, if there is one.
        """
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        cursor = query.get("cursor", "0")
        if not cursor.isdecimal():
            raise RefusalError(400, None, f"Invalid cursor: {cursor}")
        stop = int(cursor) + page_entries
        following = (
            f"<{self._endpoint}{request.raw_path}?{urlencode(query | {'cursor': str(stop)})}>; "
            'rel="next"'
        )
        return slice(int(cursor), stop), {"Link": following} if stop < num_entries else {}

    def _answer_bucket(self, request: Request, bucket: Bucket, rest: list[str]) -> Answer:
        match rest:
            case []:
                return _answer_json(bucket.information())
            case ["tree", *prefix]:
                entries = bucket.entries(
                    unquote("/".join(prefix)), recursive=_is_set(request, "recursive")
                )
                page, headers = self._page(request, self._page_entries, len(entries))
                return _answer_json(entries[page], headers)
            case ["paths-info"]:
                wanted = json.loads(request.body or b"{}").get("paths", [])
                return _answer_json(
                    [
                        bucket.file_entry(bucket.files[path])
                        for path in wanted
                        if path in bucket.files
                    ]
                )
        raise RefusalError(404, None, "Sorry, we can't find the page you are looking for.")

    def _resolve_in_bucket(self, request: Request, bucket: Bucket, path: list[str]) -> Answer:
        file = bucket.files.get(unquote("/".join(path)))
        if file is None:
            raise RefusalError(404, "EntryNotFound", "Entry not found")
        headers = {
            "X-Linked-Size": str(file.size_bytes),
            "X-Xet-Hash": file.xet_hash,
            "Link": f"<{self._endpoint}/api/buckets/{bucket.repository_id}/xet-read-token>; "
            'rel="xet-auth"',
            "Cache-Control": "no-store",
        }
        return self._redirect_to_cdn(request, bucket.repository_id, file, headers)

    def _resolve(
        self, request: Request, repository: Repository, revision: str, path: str
    ) -> Answer:
        commit = _find_commit(repository, revision)
        file = _find_file(commit, path)
        headers = {"X-Repo-Commit": commit.sha}
        if file.is_lfs:
            headers |= {
                "X-Linked-Size": str(file.size_bytes),
                "X-Linked-ETag": f'"{file.sha256}"',
                "Cache-Control": "no-store",
            }
            return self._redirect_to_cdn(
                request, repository.repository_id, file, headers | {"X-Xet-Hash": file.xet_hash}
            )
        location = (
            f"/api/resolve-cache/datasets/{repository.repository_id}/{commit.sha}/{quote(path)}"
        )
        location += f"?{quote(request.raw_path, safe='')}=&etag=%22{file.git_oid}%22"
        text = f"Temporary Redirect. Redirecting to {location}"
        return Answer(
            307,
            _REDIRECT | headers | {"ETag": f'"{file.git_oid}"', "Location": location},
            text.encode(),
            file=path,
        )

    def _redirect_to_cdn(
        self, request: Request, repository_id: str, file: StoredFile, headers: dict[str, str]
    ) -> Answer:
        location = self._cdn.sign(
            repository_id, file, "user" if "authorization" in request.headers else "public"
        )
        text = f"Found. Redirecting to {location}"
        return Answer(
            302, _REDIRECT | headers | {"Location": location}, text.encode(), file=file.path
        )


def _rate_headers(
    bucket: str, left: int, quota: int, reset_seconds: float, window_seconds: float
) -> dict[str, str]:
    policy = f'"fixed window";"{bucket}";q={quota};w={round(window_seconds)}'
    return {
        "RateLimit": f'"{bucket}";r={left};t={round(reset_seconds)}',
        "RateLimit-Policy": policy,
    }


def _token(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _refuse_gated(request: Request, repository: Repository) -> None:
    """Raises unless the request has the repository's token.

    Only the contents of a gated repository are closed, not the listings.
    """
    token = _token(request)
    if token is not None and token == repository.token:
        return
    status, remedy = (401, "log in") if token is None else (403, "ask for access")
    raise RefusalError(
        status,
        "GatedRepo",
        f"Access to dataset {repository.repository_id} is restricted. You must {remedy} to read "
        "it.",
    )


def _find_commit(repository: Repository, revision: str) -> Commit:
    commit = repository.find(revision)
    if commit is None:
        raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit


def _find_file(commit: Commit, path: str) -> StoredFile:
    file = commit.files.get(path)
    if file is None:
        raise RefusalError(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.sha})
    return file


def _is_set(request: Request, name: str) -> bool:
    """Returns whether a switch is on in the query of a request."""
    return parse_qs(request.query).get(name, [""])[0] in ("true", "True", "1")


def _answer_json(values: Any, headers: dict[str, str] | None = None) -> Answer:
    return Answer(200, _JSON | (headers or {}), json.dumps(values).encode())


def _answer_git_file(request: Request, commit: Commit, file: StoredFile) -> Answer:
    answer = answer_file(request, file.whole, f'"{file.git_oid}"', "text/plain; charset=utf-8")
    return replace(with_headers(answer, {"X-Repo-Commit": commit.sha}), file=file.path)


def _answer_information(request: Request, repository: Repository, revision: str) -> Answer:
    commit = _find_commit(repository, revision)
    with_blobs = _is_set(request, "blobs")
    information = {
        "_id": commit.sha[:24],
        "id": repository.repository_id,
        "author": repository.repository_id.partition("/")[0],
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": commit.date,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": [file.sibling(with_blobs) for _, file in sorted(commit.files.items())],
    }
    return _answer_json(information, {"X-Repo-Commit": commit.sha})


def _references(repository: Repository) -> dict[str, Any]:
    def entries(names: dict[str, str], folder: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": sha}
            for name, sha in names.items()
        ]

    # `converts` must be there for huggingface_hub, `pullRequests` if it asks for them.
    return {
        "branches": entries(repository.branches, "heads"),
        "tags": entries(repository.tags, "tags"),
        "converts": [],
        "pullRequests": [],
    }
