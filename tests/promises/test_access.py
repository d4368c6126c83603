"""The user's environment decides access: tokens, proxies and certificate
authorities.
"""

from __future__ import annotations

import contextlib
import pickle
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import pytest

import lerobot_grain as lg
from lerobot_grain._storage.base import Storage
from lerobot_grain._storage.opening import open_storage
from lerobot_grain.testing import LoopbackHub
from tests.support.streams import digest, no_pauses, streams_in_process

TOKEN, STRANGER = "hf_owner", "hf_stranger"
INFO = "meta/info.json"


@pytest.fixture(scope="module")
def guarded(small_dataset: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub() as running:
        running.add_repository("access/public", small_dataset, tags=["v3.0"])
        running.add_repository(
            "access/private", small_dataset, tags=["v3.0"], private=True, token=TOKEN
        )
        running.add_repository(
            "access/gated", small_dataset, tags=["v3.0"], gated="manual", token=TOKEN
        )
        running.add_token(STRANGER)
        yield running


# huggingface_hub before 1.0 has sessions of requests.
forget_session = (
    getattr(huggingface_hub, "close_session", None) or huggingface_hub.configure_http_backend
)


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in (
        "HUGGING_FACE_HUB_TOKEN",
        "HF_OIDC_RESOURCE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    no_pauses(monkeypatch)
    # The client of huggingface_hub is made once, with the environment of that moment.
    forget_session()
    yield
    forget_session()


# --- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "variable", "file", "implicit", "sent"),
    [
        (None, None, None, True, None),
        (TOKEN, None, None, True, TOKEN),
        (None, TOKEN, None, True, TOKEN),
        (None, None, TOKEN, True, TOKEN),
        (None, f" {TOKEN}\n", None, True, TOKEN),
        (None, None, f"{TOKEN}\n", True, TOKEN),
        (None, TOKEN, STRANGER, True, TOKEN),
        (TOKEN, STRANGER, STRANGER, True, TOKEN),
        (None, STRANGER, TOKEN, True, STRANGER),
        (True, TOKEN, None, True, TOKEN),
        (True, None, TOKEN, True, TOKEN),
        (False, TOKEN, TOKEN, True, None),
        (None, TOKEN, TOKEN, False, None),
        (True, TOKEN, None, False, TOKEN),
        (TOKEN, None, None, False, TOKEN),
    ],
)
@pytest.mark.parametrize("repository", ["access/private", "access/gated"])
def test_tokens(
    guarded,
    small_dataset,
    monkeypatch,
    tmp_path,
    repository,
    argument,
    variable,
    file,
    implicit,
    sent,
):
    """From the argument, else HF_TOKEN, else the file of `hf auth login`, unless that is
    forbidden.
    """
    if variable:
        monkeypatch.setenv("HF_TOKEN", variable)
    if file:
        (tmp_path / "token").write_text(file)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", not implicit)
    guarded.clear_requests()
    where = {"endpoint": guarded.endpoint, "token": argument, "cache_dir": tmp_path / "cache"}
    if sent == TOKEN:
        opened = lg.open_repository(repository, **where)
        video = opened.episodes.videos["top"].files.paths[0]
        for storage in (opened.storage, pickle.loads(pickle.dumps(opened.storage))):
            assert storage.read_tail(video, 100)[0] == (small_dataset / video).read_bytes()[-100:]
            storage.close()
    else:
        hint = (
            "the token that was sent gives no access"
            if sent
            else 'found none: set HF_TOKEN or run "hf auth login"'
        )
        with pytest.raises(lg.StorageError) as caught:
            lg.open_repository(repository, **where)
        expected = (
            f"{repository} is gated: ask for access on its page"
            if "gated" in repository
            else f"there is no dataset {repository} on"
        )
        assert expected in str(caught.value)
        assert f"({hint})" in str(caught.value)
    assert {(r.origin, r.had_authorization) for r in guarded.requests()} - {("cdn", False)} == {
        ("hub", sent is not None)
    }


def test_tokens_of_the_environment_of_a_process(guarded, small_dataset, tmp_path):
    """Read where huggingface_hub reads them, the file of HF_HOME, before and after this process
    was started.
    """
    (tmp_path / "token").write_text(TOKEN)
    tasks = [
        {"repository": "access/private", "endpoint": guarded.endpoint},
        {"repository": "access/gated", "endpoint": guarded.endpoint},
        {"repository": "access/private", "endpoint": guarded.endpoint, "token": False},
    ]
    private, gated, refused = streams_in_process(tasks, {"HF_HOME": str(tmp_path)})
    assert private == gated == {"digest": digest(small_dataset)}
    assert "there is no dataset access/private" in refused["text"]


# --- proxies -------------------------------------------------------------------------------------


class Forwarder:
    """A server of one thread a connection, which `handle` serves; counts the connections."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.num_connections = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.num_connections += 1
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(20)
            self.handle(connection)

    def handle(self, connection: socket.socket) -> None:
        raise NotImplementedError

    def __enter__(self) -> Forwarder:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def relay(left: socket.socket, right: socket.socket) -> None:
    """Copies both ways until one side ends."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=copy, args=(right, left), daemon=True)
    back.start()
    copy(left, right)
    back.join()


class Proxy(Forwarder):
    """A forward proxy: notes what it was asked for, and whether its password came along."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bool]] = []
        super().__init__()

    def handle(self, connection: socket.socket) -> None:
        # One request a connection, so that the rest of it can be copied blindly.
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1 << 16)
        first, _, rest = head.partition(b"\r\n")
        method, target, version = first.decode().split(" ")
        host = target if method == "CONNECT" else urlsplit(target).netloc
        self.asked.append((method, host, b"proxy-authorization: basic" in rest.lower()))
        with socket.create_connection(
            (host.partition(":")[0], int(host.partition(":")[2]))
        ) as upstream:
            if method == "CONNECT":
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                parts = urlsplit(target)
                path = parts.path + (f"?{parts.query}" if parts.query else "")
                rest = rest.replace(b"\r\nConnection: keep-alive", b"")
                upstream.sendall(
                    f"{method} {path} {version}\r\nConnection: close\r\n".encode() + rest
                )
            relay(connection, upstream)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as running:
        assert isinstance(running, Proxy)
        yield running


def test_all_requests_go_through_a_proxy(
    guarded, small_dataset, proxy, monkeypatch, tmp_path, caplog
):
    monkeypatch.setenv("HTTP_PROXY", f"http://user:password@127.0.0.1:{proxy.port}")
    guarded.clear_requests()
    with caplog.at_level("DEBUG"):
        found = digest("access/private", endpoint=guarded.endpoint, token=TOKEN, cache_dir=tmp_path)
    assert found == digest(small_dataset)
    assert {authorized for _, _, authorized in proxy.asked} == {True}
    assert len(proxy.asked) == len(guarded.requests())
    assert {host for _, host, _ in proxy.asked} == {
        urlsplit(guarded.endpoint).netloc,
        urlsplit(guarded.cdn_origin).netloc,
    }
    assert "password" not in caplog.text


@pytest.mark.parametrize(
    ("without", "hosts"),
    [("localhost,127.0.0.1", set()), ("*", set()), ("127.0.0.1", {"localhost"})],
)
def test_hosts_without_proxy(guarded, small_dataset, proxy, monkeypatch, tmp_path, without, hosts):
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
    monkeypatch.setenv("NO_PROXY", without)
    assert digest("access/public", endpoint=guarded.endpoint, cache_dir=tmp_path) == digest(
        small_dataset
    )
    assert {host.partition(":")[0] for _, host, _ in proxy.asked} == hosts


def test_a_proxy_that_is_not_there(guarded, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://user:password@127.0.0.1:{port}")
    with pytest.raises(
        lg.StorageError,
        match=r"gave up after \d+ attempt\(s\), .* ConnectError at localhost: .*refused",
    ) as caught:
        open_with(guarded.endpoint, tmp_path, options=lg.StorageOptions(deadline_seconds=1.5))
    assert "password" not in str(caught.value)


# --- certificates --------------------------------------------------------------------------------


class TlsHub(Forwarder):
    """The origin of a Hub, over TLS.

    Small files only: links to the CDN would lead back from https to http, which is refused.
    """

    def __init__(self, hub: LoopbackHub, certificate: Path, key: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._upstream = urlsplit(hub.endpoint).port
        super().__init__()
        self.endpoint = f"https://localhost:{self.port}"

    def handle(self, connection: socket.socket) -> None:
        with (
            self._context.wrap_socket(connection, server_side=True) as encrypted,
            socket.create_connection(("localhost", self._upstream)) as upstream,
        ):
            relay(encrypted, upstream)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate that signs itself, `ca.pem`, and its key, made into one for
    SSL_CERT_DIR too.
    """
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl, which makes the certificate, is not here")
    made = tmp_path_factory.mktemp("certificate")
    names = [
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "keyUsage=critical,keyCertSign,digitalSignature",
    ]

    def openssl(*arguments: str) -> str:
        return subprocess.run(
            ["openssl", *arguments],
            cwd=made,
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        ).stdout.strip()

    options = [option for name in names for option in ("-addext", name)]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", "key.pem"]
    openssl(
        "req",
        "-x509",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        *curve,
        "-out",
        "ca.pem",
        *options,
    )
    name_hash = openssl("x509", "-in", "ca.pem", "-noout", "-hash")
    (made / f"{name_hash}.0").write_bytes((made / "ca.pem").read_bytes())
    return made


@pytest.fixture
def tls(guarded: LoopbackHub, certificate: Path) -> Iterator[TlsHub]:
    with TlsHub(guarded, certificate / "ca.pem", certificate / "key.pem") as running:
        assert isinstance(running, TlsHub)
        yield running


def open_with(endpoint: str, cache: Path, **changes: Any) -> Storage:
    options = lg.StorageOptions(max_attempts=2, read_timeout_seconds=5.0, deadline_seconds=10.0)
    arguments: dict[str, Any] = {"revision": "v3.0", "token": None, "options": options} | changes
    return open_storage("access/public", endpoint=endpoint, cache_dir=cache, **arguments)


@pytest.mark.parametrize(
    ("variable", "value"), [("SSL_CERT_FILE", "ca.pem"), ("SSL_CERT_DIR", ".")]
)
def test_certificate_authorities_of_the_user(
    tls, certificate, small_dataset, monkeypatch, tmp_path, variable, value
):
    monkeypatch.setenv(variable, str(certificate / value))
    with contextlib.closing(open_with(tls.endpoint, tmp_path)) as storage:
        contents = (small_dataset / INFO).read_bytes()
        assert storage.read_metadata(INFO, max_bytes=100_000) == contents
        assert (
            storage.read_tail("meta/stats.json", 10)[0]
            == (small_dataset / "meta/stats.json").read_bytes()[-10:]
        )


# huggingface_hub left requests, and with it these two, for httpx2.
@pytest.mark.parametrize("variable", [None, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_certificate_that_is_not_trusted_is_an_error_at_once(
    tls, certificate, monkeypatch, tmp_path, variable
):
    if variable:
        monkeypatch.setenv(variable, str(certificate / "ca.pem"))
    with pytest.raises(lg.StorageError) as caught:
        open_with(tls.endpoint, tmp_path, token=TOKEN)
    assert str(caught.value) == (
        "access/public@v3.0: localhost shows a certificate that is not trusted (self-signed "
        "certificate); if it is a mirror or proxy of yours, let SSL_CERT_FILE or SSL_CERT_DIR "
        "name its certificate authority"
    )
    assert caught.value.__context__ is None
    assert tls.num_connections == 1


def test_a_proxy_for_https(tls, certificate, proxy, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "ca.pem"))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
    with contextlib.closing(open_with(tls.endpoint, tmp_path)) as storage:
        assert storage.read_metadata(INFO, max_bytes=100_000).startswith(b"{")
    assert {(method, host) for method, host, _ in proxy.asked} == {
        ("CONNECT", f"localhost:{tls.port}")
    }
