"""No token and no signed link leaves this process but to whom it belongs: not in errors, logs,
warnings, pickles, states or files.

Whole streams of a private dataset are disturbed in all ways at all places, with every logger at
DEBUG, and everything that comes out of it is searched.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import huggingface_hub
import pytest

import lerobot_grain as lg
from lerobot_grain.testing import Fault, LoopbackHub
from tests.support.streams import digest, no_pauses

TOKEN = "hf_TopSecretTopSecret"
# Parts of the loopback Hub's own links, plain and quoted, and of links that only faults give.
SECRETS = (TOKEN, "Signature=", "Signature%3D", "Policy=", "Policy%3D", "Forged")
FORGED = "/elsewhere?Signature=Forged&Policy=Forged"
PLACES = [
    ("hub", r"^/api/datasets/"),
    ("hub", "/meta/"),
    ("cdn", "^meta/"),
    ("hub", r"\.mp4$"),
    ("cdn", r"\.mp4$"),
    ("cdn", "^data/"),
]
FAULTS: dict[str, dict[str, Any]] = {
    **{str(status): {"status": status} for status in (401, 403, 404, 418, 503)},
    "429": {"status": 429, "headers": {"RateLimit": '"resolvers";r=0;t=0'}},
    "429 for long": {"status": 429, "headers": {"RateLimit": '"resolvers";r=0;t=1000'}},
    "bad token": {
        "status": 401,
        "headers": {"X-Error-Message": "Invalid credentials in Authorization header"},
    },
    "gated": {"status": 403, "headers": {"X-Error-Code": "GatedRepo"}},
    "closed": {"close_before": True},
    "reset": {"reset_at": 3},
    "truncated": {"truncate_at": 3},
    "stalled": {"stall_at": 3},
    "whole file": {"ignore_range": True},
    "another range": {"wrong_content_range": True},
    # Only pieces that begin in the first 1,000 bytes: they contradict the others however often
    # both are asked for, and in whatever order.
    "changed": {"headers": {"ETag": '"other"'}, "range_regex": r"^bytes=\d{1,3}-"},
    "damaged": {"corrupt_at": 7},
    "redirect": {"status": 302, "headers": {"Location": FORGED}},
    "redirect elsewhere": {"status": 302, "headers": {"Location": f"http://localhost:9{FORGED}"}},
    "redirect to nowhere": {"status": 302, "headers": {"Location": f"gopher://x{FORGED}"}},
    "redirect to what is no link": {"status": 307, "headers": {"Location": f"http://[::1{FORGED}"}},
    "no size": {"headers": {"X-Linked-Size": "-"}},
}


@pytest.fixture(scope="module")
def secret_hub(small_dataset: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub() as running:
        running.add_repository(
            "secrets/arm", small_dataset, tags=["v3.0"], private=True, token=TOKEN
        )
        yield running


class Witness(logging.Handler):
    """Hears every log record and every warning, as a handler of the root logger would write
    them.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(self.format(record))
        # Handlers that write JSON take the parts.
        self.heard.append(repr((record.msg, record.args)))

    def showwarning(self, message: Warning | str, *_: Any, **__: Any) -> None:
        self.heard.append(repr(message))


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Iterator[Witness]:
    found = Witness()
    root = logging.getLogger()
    names = [
        "",
        *(
            name
            for name in logging.Logger.manager.loggerDict
            if name.startswith(("http", "huggingface_hub", "lerobot_grain"))
        ),
    ]
    for name in names:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    logging.Logger.manager._clear_cache()  # levels are remembered
    root.addHandler(found)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", found.showwarning)
        yield found
    root.removeHandler(found)
    logging.Logger.manager._clear_cache()


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody waits between attempts, huggingface_hub logs all it can, and the only cache is the
    test's.
    """
    no_pauses(monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_DEBUG", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)


def everything_of(error: BaseException) -> Iterator[str]:
    """Yields all that a handler of errors, a log or another process could get from an error and
    those before it.
    """
    yield "".join(traceback.format_exception(error))
    pending: list[BaseException | None] = [error]
    while pending:
        if (this := pending.pop()) is None:
            continue
        yield from (str(this), repr(this), repr(this.args), repr(vars(this)))
        yield pickle.dumps(this).decode("latin-1")
        pending += [this.__cause__, this.__context__]


def assert_no_secrets(texts: Iterator[str] | list[str], secrets: tuple[str, ...] = SECRETS) -> None:
    for text in texts:
        for secret in secrets:
            place = text.find(secret)
            assert place < 0, f"{secret}: ...{text[max(0, place - 200) : place + 60]}..."


def files_under(directory: Path) -> Iterator[str]:
    for path in directory.rglob("*"):
        yield str(path)
        if path.is_file():
            yield path.read_bytes().decode("latin-1")


def options(*, deadline_seconds: float = 2.0) -> lg.ReadOptions:
    # Nothing is fetched together, so that there is a second request for a file, which can
    # contradict the first; and nothing is kept, since all tests read the same commit.
    storage = lg.StorageOptions(
        max_attempts=2,
        read_timeout_seconds=0.3,
        deadline_seconds=deadline_seconds,
        merge_gap_bytes=0,
        disk_cache_bytes=0,
    )
    return lg.ReadOptions(storage=storage)


@pytest.mark.parametrize("fault", FAULTS, ids=[name.replace(" ", "_") for name in FAULTS])
def test_a_disturbed_stream(
    secret_hub: LoopbackHub,
    witness: Witness,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # A server to which no connection is made is asked until the deadline.
    reading = options(deadline_seconds=0.5) if fault == "redirect elsewhere" else options()
    errors: list[BaseException] = []
    # An exception in a thread goes to standard error.
    monkeypatch.setattr(threading, "excepthook", lambda found: errors.append(found.exc_value))
    for number, (origin, path) in enumerate(PLACES):
        if fault == "stalled" and "meta" in path:
            continue  # huggingface_hub would wait for half a minute
        secret_hub.clear_faults()
        secret_hub.add_fault(
            Fault(origin=origin, path_regex=path, **({"times": None} | FAULTS[fault]))
        )
        try:
            digest(
                "secrets/arm",
                endpoint=secret_hub.endpoint,
                cache_dir=tmp_path / str(number),
                read_options=reading,
            )
        except lg.LeRobotGrainError as error:
            errors.append(error)
    secret_hub.clear_faults()
    assert errors
    for error in errors:
        assert_no_secrets(everything_of(error))
    assert any("xet-bridge-us" in text for text in witness.heard)
    assert_no_secrets(witness.heard)
    assert_no_secrets(files_under(tmp_path))
    assert_no_secrets(list(capfd.readouterr()))


@pytest.mark.parametrize("given", [True, False], ids=["given", "of_the_environment"])
def test_what_is_kept_or_sent_to_other_processes(
    secret_hub: LoopbackHub,
    witness: Witness,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: bool,
) -> None:
    if not given:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    where: dict[str, Any] = {
        "endpoint": secret_hub.endpoint,
        "cache_dir": tmp_path,
        "token": TOKEN if given else None,
    }
    dataset = lg.LeRobotIterDataset("secrets/arm", **where)
    storage = dataset.repository.storage
    with contextlib.closing(iter(dataset)) as iterator:
        next(iterator)
        secret_hub.expire_urls()
        for _ in range(40):
            next(iterator)
        kept = [
            repr(value)
            for value in (iterator.get_state(), iterator, dataset, dataset.repository, storage)
        ]
    pickles = [
        cloudpickle.dumps(value).decode("latin-1")
        for value in (dataset, dataset.repository, storage)
    ]
    links = tuple(secret for secret in SECRETS if secret != TOKEN)
    assert_no_secrets(pickles, links if given else SECRETS)
    # Nobody else could tell it to the other process.
    assert all((TOKEN in text) == given for text in pickles)
    assert_no_secrets(kept)
    assert_no_secrets(files_under(tmp_path))
    assert_no_secrets(witness.heard)
    assert any("302" in text and "Location" in text for text in witness.heard)
