"""Asking the API of the Hub: what a revision is, which files there are, and what the repository is
called now.

The idea: a repository that was renamed is still known by its old name, under which the Hub answers
with a redirect to the same address of the new one. The first such answer gives the new name, and
everything after it is asked, and called, by that.

Rules:
* Redirects of the API are followed at the endpoint's own origin only: the token goes nowhere else.
* A mirror may lack what only the original has: the list of tags and branches is asked for only
  where no revision was given, or where an error is made better by it.
* Answers are parsed with suspicion: what is not understood is an error that says so.

Used while a dataset is being opened; files are asked for by `_storage/hub/session`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from lerobot_grain._base.errors import StorageError
from lerobot_grain._format.layout import INFO_PATH
from lerobot_grain._storage.git_files import hash_in
from lerobot_grain._storage.http.calls import Call, Deadline
from lerobot_grain._storage.http.cancellation import CHECK_SECONDS
from lerobot_grain._storage.http.client import MAX_HOPS, HttpClient, RequestCancelledError
from lerobot_grain._storage.http.responses import (
    REDIRECTS,
    Response,
    RetryableError,
    cut,
    describe_url,
    next_hop,
    origin_of,
)
from lerobot_grain._storage.hub.address import COMMIT, HubAddress, ListedFile, Refusal

# The Hub sends 1,000 entries a page, about 200 bytes each; both limits are far above what a `meta/`
# needs.
_MAX_JSON_BYTES = 32 * 1024 * 1024
_MAX_PAGES = 1000
# Tags and branches in a message.
_MAX_NAMED = 20

_NEXT_PAGE = re.compile(r'<([^<>]*)>\s*;\s*rel="?next"?')


class References(NamedTuple):
    """Name -> hash of the tags and of the branches of a repository.

    For an annotated tag it may be its own, and not that of a commit.
    """

    tags: Mapping[str, str]
    branches: Mapping[str, str]


class _ElsewhereError(StorageError):
    """A redirect that is not followed; the text says what to do."""


def refusal_in(answer: Response) -> Refusal | None:
    """Returns what an answer of the Hub refuses, or None.

    `X-Error-Code` is its own word, as huggingface_hub reads it.
    """
    code = answer.headers.get("X-Error-Code")
    message = answer.headers.get("X-Error-Message", "")
    by_code = {
        "GatedRepo": Refusal.GATED,
        "RepoNotFound": Refusal.MISSING_REPOSITORY,
        "RevisionNotFound": Refusal.MISSING_REVISION,
        "EntryNotFound": Refusal.MISSING_FILE,
    }
    if answer.status < 400:
        return None
    if code in by_code:
        return by_code[code]
    if message == "Access to this resource is disabled.":
        return Refusal.DISABLED
    if answer.status == 401:
        # huggingface_hub tells these two apart in the same way: without access, everything looks
        # missing.
        return (
            Refusal.BAD_TOKEN
            if message == "Invalid credentials in Authorization header"
            else Refusal.MISSING_REPOSITORY
        )
    return Refusal.OTHER


class HubApi:
    """The questions of one process to the API about one repository. Thread-safe.

    Attributes:
      repository: as the Hub calls it now, as far as is known.
    """

    def __init__(self, repository: HubAddress, client: HttpClient) -> None:
        self.repository = repository
        self._client = client
        self._lock = threading.Lock()
        self._asked_for = repository.repo_id
        self._folders: dict[str, list[str]] = {}
        self._listing = threading.Lock()
        self._sizes: dict[str, dict[str, int]] = {}

    def references(self) -> References:
        """Returns the tags and branches. One request.

        Raises:
          StorageError: they could not be fetched; the text says what to do without them.
        """
        repository = self.repository
        subject = f"{repository.repo_id}: list of tags and branches"
        remedy = 'give revision= ("main", or another branch, a tag or a commit) to do without it'
        try:
            answer, found = self.get_json(repository.api_url("refs"), subject)
        except (RequestCancelledError, _ElsewhereError):
            raise
        except StorageError as error:
            raise StorageError(f"{error}; if only this list is missing, {remedy}") from None
        if refusal_in(answer) is Refusal.OTHER:
            raise StorageError(
                f"{subject}: {repository.endpoint} answered with HTTP {answer.status}; if it is a "
                f"mirror that has no such list, {remedy}"
            )
        self.check_refusal(answer, repository.repo_id)
        if not isinstance(found, dict) or not all(
            isinstance(found.get(kind), list | None) for kind in ("tags", "branches")
        ):
            raise StorageError(
                f"{subject}: {repository.endpoint} sent one that is not understood; {remedy}"
            )
        return References(_named(found.get("tags")), _named(found.get("branches")))

    def commit_of(self, *revisions: str) -> tuple[str, str]:
        """Returns the first of some revisions that exists, and the commit that it stands for now: a
        branch, a tag or a commit.

        One request, none for a whole commit hash. The list of references holds hashes too, but
        whether the one of an annotated tag is that of the tag or of the commit is not documented.
        """
        for revision in revisions:
            if COMMIT.fullmatch(revision):
                return revision, revision
            subject = f"{self.repository.repo_id}@{revision}"
            answer, found = self.get_json(self.repository.api_url("revision", revision), subject)
            refusal = refusal_in(answer)
            if refusal is Refusal.MISSING_REVISION or (
                refusal is Refusal.OTHER and answer.status == 404
            ):
                continue
            self.check_refusal(answer, subject)
            sha = found.get("sha") if isinstance(found, dict) else None
            if not isinstance(sha, str) or not COMMIT.fullmatch(sha):
                raise StorageError(
                    f"{subject}: {self.repository.endpoint} told no commit hash for the revision"
                )
            self._folders[sha] = _folders_in(found)
            return revision, sha
        known = f"{self.repository.endpoint} does not list its tags and branches"
        with contextlib.suppress(StorageError):
            references = self.references()
            found_names = [
                cut(name) for name in dict.fromkeys((*references.tags, *references.branches))
            ]
            more = (
                [f"and {len(found_names) - _MAX_NAMED} more"]
                if len(found_names) > _MAX_NAMED
                else []
            )
            known = f"its tags and branches: {', '.join(found_names[:_MAX_NAMED] + more) or 'none'}"
        names = " or ".join(map(repr, revisions))
        if refusal_in(answer) is Refusal.MISSING_REVISION:
            raise StorageError(f"{subject}: the repository has no revision {names}; {known}")
        told = f"{self.repository.endpoint} answered with HTTP {answer.status}"
        raise StorageError(
            f"{subject}: {told}: it has no revision {names}, or no such repository; {known}"
        )

    def folders(self, commit: str) -> list[str]:
        """Returns the folders of a commit that hold a dataset, as far as the Hub tells.

        At most one request; for messages of errors.
        """
        if commit not in self._folders:
            self._folders[commit] = []
            with contextlib.suppress(StorageError):
                _, found = self.get_json(
                    self.repository.api_url("revision", commit), self.repository.at(commit)
                )
                self._folders[commit] = _folders_in(found)
        return self._folders[commit]

    def list_tree(
        self, version: str, directory: str, *, recursive: bool = True
    ) -> list[ListedFile]:
        """Returns all files under `directory` of the dataset, or only those in it; none if it does
        not exist.

        One request for each 1,000 entries.
        """
        subject = f"{self.repository.at(version)}: {directory}/"
        beginning = self.repository.prefix + (f"{directory}/" if directory else "")
        query = ""
        files: list[ListedFile] = []
        for _ in range(_MAX_PAGES):
            url = self.repository.tree_url(version, directory, recursive=recursive)
            answer, entries = self.get_json(
                f"{url.partition('?')[0]}?{query}" if query else url, subject, version
            )
            if refusal_in(answer) is Refusal.MISSING_FILE:
                return files
            self.check_refusal(answer, subject)
            for entry in entries if isinstance(entries, list) else [None]:
                file = _listed(entry)
                if file is None:
                    raise StorageError(
                        f"{subject}: {self.repository.endpoint} sent a listing that is not "
                        "understood"
                    )
                # The Hub compares the beginnings of paths in a bucket: for `meta` it lists
                # `metadata/...` too.
                if file.size_bytes >= 0 and file.path.startswith(beginning):
                    files.append(file._replace(path=file.path.removeprefix(self.repository.prefix)))
            following = _NEXT_PAGE.search(answer.headers.get("Link", ""))
            if following is None:
                return files
            # Only the query of the link, which holds the cursor: a mirror may pass on links of the
            # original, and the token must stay here.
            query = following[1].partition("?")[2]
        raise StorageError(f"{subject}: more than {_MAX_PAGES} pages of files, expected a few")

    def listed_size(self, version: str, path: str) -> int | None:
        """Returns the size of a file as its folder is listed; None if it is not. One request for
        each folder (of up to 1,000 files).
        """
        directory = path.rpartition("/")[0]
        # One thread asks, and others that wait for it can be ended.
        while not self._listing.acquire(timeout=CHECK_SECONDS):
            self._client.check_not_ended(f"{self.repository.at(version)}: {path}")
        try:
            if directory not in self._sizes:
                self._sizes[directory] = {
                    file.path: file.size_bytes
                    for file in self.list_tree(version, directory, recursive=False)
                }
            return self._sizes[directory].get(path)
        finally:
            self._listing.release()

    def note(self, text: str) -> None:
        """Adds a note about the repository's name."""
        with self._lock:
            self.repository = dataclasses.replace(
                self.repository, notes=(*self.repository.notes, text)
            )

    def adopt_name(self, asked: str, target: str, subject: str) -> bool:
        """Returns whether a redirect gives the repository another name, which then is taken over.

        Raises:
          StorageError: the name is another server's.
        """
        with self._lock:
            repository = self.repository
            if (name := repository.renamed_by(asked, target)) is None:
                return False
            if origin_of(target) != origin_of(repository.endpoint):
                raise self._elsewhere(
                    target,
                    f"if {repository.repo_id} is called {name} now, open it by that name",
                    subject,
                )
            note = (
                f"{self._asked_for}: {repository.endpoint} redirects this name to {name}: the "
                "repository was renamed or moved, so use the new name"
            )
            notes = (
                note,
                *(
                    other
                    for other in repository.notes
                    if not other.startswith(f"{self._asked_for}: ")
                ),
            )
            self.repository = dataclasses.replace(repository, repo_id=name, notes=notes)
            return True

    def _elsewhere(self, target: str, remedy: str, subject: str) -> _ElsewhereError:
        return _ElsewhereError(
            f"{subject}: {self.repository.endpoint} redirects to another server, "
            f"{describe_url(target)}, which is not followed: the token is for "
            f"{self.repository.endpoint} only; {remedy}"
        )

    def get_json(self, url: str, subject: str, version: str | None = None) -> tuple[Response, Any]:
        """Returns the answer and, if it is a good one, its parsed body.

        It must not be that for another version than `version`.
        """

        def attempt(deadline: Deadline) -> tuple[Response, Any]:
            body: list[bytes] = []
            answer = self._get(url, subject, deadline, body)
            if answer.status != 200:
                return answer, None
            if version is not None:
                self.check_version(answer, version, version, subject)
            try:
                return answer, json.loads(b"".join(body))
            except (ValueError, RecursionError):
                problem = f"{describe_url(url)} answered with something that is not JSON"
            raise RetryableError(problem)

        return self._client.retry(subject, self.repository.options.deadline_seconds, attempt)

    def _get(self, url: str, subject: str, deadline: Deadline, body: list[bytes]) -> Response:
        """Sends one request, and those that redirects lead to; appends the body of a good answer to
        `body`.
        """
        asked = [url]
        while len(asked) <= MAX_HOPS + 1:
            call = Call(
                "GET",
                asked[-1],
                self.repository.headers(),
                subject=subject,
                deadline=deadline,
                accept=lambda answer: _MAX_JSON_BYTES if answer.status == 200 else None,
            )
            answer = self._client.exchange(call, body)
            if answer.status not in REDIRECTS:
                return answer
            following = self._next_address(asked[-1], answer, subject)
            if following in asked:
                break
            asked.append(following)
        raise circle(subject, asked)

    def _next_address(self, asked: str, answer: Response, subject: str) -> str:
        repository = self.repository
        target = next_hop(asked, answer.headers.get("Location"), subject=subject)
        if not self.adopt_name(asked, target, subject):
            if origin_of(target) != origin_of(repository.endpoint):
                raise self._elsewhere(
                    target, "if that is the Hub to read from, give it as endpoint=", subject
                )
            return target
        # Our own address with the new name, because a mirror may leave its path, and any server the
        # query, out of the target.
        rest = asked.removeprefix(repository.endpoint)
        kind = repository.kind
        return repository.endpoint + rest.replace(
            f"/{kind}/{repository.repo_id}/", f"/{kind}/{self.repository.repo_id}/", 1
        )

    def check_refusal(self, answer: Response, subject: str) -> None:
        """Raises the error for an answer that is a refusal."""
        if refusal := refusal_in(answer):
            raise self.repository.refusal(
                refusal, subject, f"{self.repository.endpoint} answered with HTTP {answer.status}"
            ) from None

    def check_version(self, answer: Response, version: str, default: str, subject: str) -> None:
        """Raises an error for an answer about another version; one that tells none is about
        `default`.
        """
        repository = self.repository
        if (found := answer.headers.get(repository.version_header, default)) != version:
            untold = f" (without the header {repository.version_header})" if found == "none" else ""
            told = (
                f"{repository.endpoint}{untold} answered for {repository.version_noun} "
                f"{cut(found)}, expected {version}"
            )
            if repository.version_remedy and found != "none":
                raise StorageError(f"{subject}: {told}{repository.version_remedy}")
            raise RetryableError(told)


def circle(subject: str, asked: list[str]) -> StorageError:
    """Returns the error for redirects without end, by way of the addresses `asked`."""
    ways = " to ".join(describe_url(url) for url in asked[:3])
    return StorageError(
        f"{subject}: redirected in a circle, or more than {MAX_HOPS} times: from {ways}; the "
        "server is not set up rightly"
    )


def _named(references: list[Any] | None) -> dict[str, str]:
    """Returns name -> hash of a list of tags or branches, without what is none: no entry that is
    odd hides the others.
    """
    return {
        reference["name"]: str(reference.get("targetCommit") or "")
        for reference in references or []
        if isinstance(reference, dict) and isinstance(reference.get("name"), str)
    }


def _listed(entry: object) -> ListedFile | None:
    """Returns an entry of a listing, a folder with a size of -1; None if it is not understood."""
    match entry:
        case {"type": "directory"}:
            return ListedFile("", -1)
        case {"type": "file", "path": str(path), "size": int(size), **rest} if size >= 0:
            xet_hash = str(rest.get("xetHash") or "")
            match rest.get("lfs"):
                case {"oid": str(oid), "size": int(lfs_size)} if lfs_size >= 0:
                    return ListedFile(path, lfs_size, xet_hash, hash_in(oid))
                case _:
                    # The id of what is in Git, which for a file in Xet is another one.
                    return ListedFile(
                        path, size, xet_hash, "" if xet_hash else hash_in(rest.get("oid"))
                    )
    return None


def _folders_in(found: object) -> list[str]:
    """Returns the folders with a dataset in what the Hub says of a commit: `siblings` are all its
    files.
    """
    siblings = found.get("siblings") if isinstance(found, dict) else None
    names = (
        [sibling.get("rfilename") for sibling in siblings if isinstance(sibling, dict)]
        if isinstance(siblings, list)
        else []
    )
    ending = f"/{INFO_PATH}"
    return sorted(
        cut(name.removesuffix(ending))
        for name in names
        if isinstance(name, str) and name.endswith(ending)
    )
