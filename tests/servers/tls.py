"""TLS in front of a server: a CA made for the test, and a proxy that ends TLS."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_PIECE = 64 << 10
_KIND = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class TlsProxy:
    """A running proxy.

    :ivar port: where it listens, on 127.0.0.1; its certificate is for 127.0.0.1 and localhost.
    :ivar ca: file with the CA's certificate.
    """

    port: int
    ca: Path

    @property
    def endpoint(self) -> str:
        """The proxy's address."""
        return f"https://127.0.0.1:{self.port}"


def tls_missing() -> str | None:
    """Say what is missing, or None."""
    return None if shutil.which("openssl") else "not installed: openssl"


class Authority:
    """A certificate authority of the tests.

    :param directory: an empty one, for its files and all certificates.
    :ivar file: its own certificate.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.file = directory / "ca.pem"
        self._openssl(
            "req", "-x509", *_KIND, "-days", "2", "-keyout", "ca.key", "-out", "ca.pem",
            "-subj", "/CN=backupfw test CA", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    def issue(self, name: str, names: str = "DNS:localhost,IP:127.0.0.1", days: int = 2) -> tuple[Path, Path]:
        """Make a certificate; return its file and its key's.

        :param name: of the files.
        :param names: whose it is.
        :param days: how long it is good; negative: it has expired.
        """
        extensions = self._directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\nbasicConstraints=critical,CA:FALSE\n")
        request = f"{name}.csr"
        self._openssl("req", *_KIND, "-keyout", f"{name}.key", "-out", request, "-subj", "/CN=localhost")
        self._openssl(
            "x509", "-req", "-in", request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", str(days), "-extfile", extensions.name, "-out", f"{name}.crt",
        )  # fmt: skip
        return self._directory / f"{name}.crt", self._directory / f"{name}.key"

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self._directory, check=True, capture_output=True, timeout=60)


def make_certificates(directory: Path) -> tuple[Path, Path]:
    """Make a CA and a certificate of it; returns the CA's file, and one with key and certificate."""
    authority = Authority(directory)
    certificate, key = authority.issue("server")
    both = directory / "server.pem"
    both.write_text(key.read_text() + certificate.read_text())
    return authority.file, both


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_PIECE):
            target.write(data)
            await target.drain()
    target.close()


@contextmanager
def tls_proxy(directory: Path, port: int) -> Iterator[TlsProxy]:
    """Accept TLS and hand everything on to ``port`` on 127.0.0.1.

    :param directory: an empty one, for the certificates.
    """
    ca, certificate = make_certificates(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))

    loop = asyncio.new_event_loop()
    # Failed handshakes are what some tests want; they are the client's to tell.
    loop.set_exception_handler(lambda loop, details: None)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    server = run(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    try:
        yield TlsProxy(server.sockets[0].getsockname()[1], ca)
    finally:
        run(_end(server))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
