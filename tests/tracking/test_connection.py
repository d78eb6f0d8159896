"""Whether an MLflow server responds is asked as MLflow asks, once, before the work."""

from __future__ import annotations

import http.server
import shutil
import sqlite3
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mlflow import MlflowClient
from requests import Response

from muva.errors import MuvaError
from tracking.connection import check_reachable, reached_client, uploads_explained


@contextmanager
def server(status: int, certificate: Path | None = None, page: bytes = b"") -> Iterator[str]:
    """A server that answers everything with one status, over TLS if it has a certificate."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        scheme = "https"
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        running.socket = tls.wrap_socket(running.socket, server_side=True)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{running.server_address[1]}"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 that no authority of the system has signed, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return file


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_proxy_without_a_server_behind_it_fails_at_once(status: int) -> None:
    began = time.monotonic()
    with server(status) as address, pytest.raises(MuvaError, match=f"responds.*status {status}"):
        reached_client(address)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("status", [200, 401, 404])
def test_any_other_response_is_that_of_a_server(status: int) -> None:
    with server(status) as address:
        reached_client(address)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "credentials in MLFLOW_TRACKING_USERNAME"),
        (403, "an account that may write"),
        (404, "a tracking URI with the server's path"),
        (400, "keep responding"),
    ],
)
def test_what_a_server_refuses_comes_with_a_remedy(status: int, remedy: str) -> None:
    with server(status) as address, pytest.raises(MuvaError, match=f"{status}.*{remedy}"):
        check_reachable(address)


def test_a_server_that_refuses_uploads_asks_for_another_account() -> None:
    response = Response()
    response.status_code = 403
    with pytest.raises(MuvaError, match="upload files"), uploads_explained("http://host"):
        response.raise_for_status()


def test_a_web_page_is_not_that_of_a_server() -> None:
    page = b"\n<!DOCTYPE html><html><body>Please sign in</body></html>"
    with (
        server(200, page=page) as address,
        pytest.raises(MuvaError, match=r"is not an MLflow server.*MLFLOW_TRACKING_TOKEN"),
    ):
        reached_client(address)


def test_models_are_registered_where_the_runs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path / 'other.db'}")
    client = reached_client(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.create_registered_model("muva")
    assert {file.name for file in tmp_path.glob("*.db")} == {"mlflow.db"}
    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    same = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert same.get_registered_model("muva").name == "muva"


def test_a_database_of_a_newer_version_is_found_by_the_check(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    address = f"sqlite:///{file}"
    assert check_reachable(address)
    assert not file.exists(), "the check creates nothing"
    copy = tmp_path / "newer.db"
    reached_client(address)
    shutil.copy(file, copy)
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    with pytest.raises(MuvaError, match=r"out-of-date.*another one with --tracking-uri"):
        check_reachable(f"sqlite:///{copy}")


def test_certificates_are_those_of_mlflows_own_settings(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(200, certificate) as address:
        with pytest.raises(MuvaError, match=r"(?i)certificate"):
            reached_client(address)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        reached_client(address)
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        reached_client(address)
