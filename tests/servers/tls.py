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


def make_certificates(directory: Path) -> tuple[Path, Path]:
    """Make a CA and a certificate of it; returns the CA's file, and one with key and certificate."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True, timeout=60)

    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl(
        "req", "-x509", *kind, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=backupfw test CA",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip
    openssl(
        "req", "-x509", *kind, "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "server.key",
        "-out", "server.crt", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-addext", "basicConstraints=critical,CA:FALSE",
    )  # fmt: skip
    both = directory / "server.pem"
    both.write_text((directory / "server.key").read_text() + (directory / "server.crt").read_text())
    return directory / "ca.pem", both


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
