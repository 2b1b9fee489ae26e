"""One Tidewire server for the suite, and small helpers around the official client.

Owns the process it starts and its folder; ends only those. ``TIDEWIRE_BIN`` names the binary, otherwise it is
the release build of this checkout.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import psycopg

ROOT = Path(__file__).resolve().parents[3]
BINARY = os.environ.get("TIDEWIRE_BIN", str(ROOT / "target/release/tidewire"))
START_LIMIT_S = 60
STOP_LIMIT_S = 15

T = TypeVar("T")


def sign_token(claims: dict[str, Any], secret: str) -> str:
    """Signs claims with HS256; ``exp`` is an hour from now unless the claims say otherwise."""

    def part(value: object) -> str:
        text = json.dumps(value, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    now = int(time.time())
    unsigned = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'iat': now, 'exp': now + 3600, **claims})}"
    signature = hmac.new(secret.encode(), unsigned.encode(), hashlib.sha256).digest()
    return f"{unsigned}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


class Server:
    """``tidewire dev --json`` in a folder of its own."""

    def __init__(self) -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="tidewire-conformance-"))
        self._dir.chmod(0o711)  # as root Postgres runs under another account, which has to pass through
        self._stderr = (self._dir / "stderr.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        self.info: dict[str, Any] = {}
        self.run(port=0)

    def run(self, port: int | None = None) -> None:
        """Starts the binary; at a restart on the port it had."""
        if port is None:
            port = int(self.info["url"].rsplit(":", 1)[1])
        arguments = ["dev", "--json", "--port", str(port), "--data-dir", str(self._dir / "data")]
        self._process = subprocess.Popen([BINARY, *arguments], stdout=subprocess.PIPE, stderr=self._stderr)
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_LIMIT_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.signal(signal.SIGKILL)
            raise RuntimeError(f"the server did not start:\n{(self._dir / 'stderr.log').read_text()[-5000:]}")
        self.info = json.loads(line)
        if "error" in self.info:
            raise RuntimeError(f"the server did not start: {self.info['error']}")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal and waits for the end."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(number)
        self._process.wait(STOP_LIMIT_S)

    def stop(self) -> None:
        try:
            self.signal(signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            raise
        finally:
            if self._process is not None and self._process.stdout is not None:
                self._process.stdout.close()
            self._stderr.close()
            shutil.rmtree(self._dir, ignore_errors=True)

    def sql(self, text: str, *values: object) -> None:
        with psycopg.connect(self.info["db_url"], autocommit=True) as connection:
            connection.execute(text, values or None)

    def table(self, name: str, columns: str, *, identity: str | None = None, rls: bool = False) -> str:
        """Creates a table, publishes it and lets the API roles use it."""
        self.sql(f"create table public.{name} ({columns})")
        if identity:
            self.sql(f"alter table public.{name} replica identity {identity}")
        if rls:
            self.sql(f"alter table public.{name} enable row level security")
        self.sql(f"grant select, insert, update, delete on public.{name} to anon, authenticated, service_role")
        self.sql(f"alter publication supabase_realtime add table public.{name}")
        return name

    def token(self, **claims: Any) -> str:
        return sign_token(claims, self.info["jwt_secret"])


class Inbox(Generic[T]):
    """Collects what arrives and lets a test wait for a fact."""

    def __init__(self) -> None:
        self.all: list[T] = []
        self._news = asyncio.Event()

    def push(self, item: T) -> None:
        self.all.append(item)
        self._news.set()

    async def some(self, count: int, matches: Callable[[T], bool] = lambda _: True, within: float = 10) -> list[T]:
        async def wait() -> list[T]:
            while True:
                found = [item for item in self.all if matches(item)]
                if len(found) >= count:
                    return found[:count]
                self._news.clear()
                await self._news.wait()

        try:
            return await asyncio.wait_for(wait(), within)
        except asyncio.TimeoutError:
            raise AssertionError(f"{count} wanted within {within} s, {len(self.all)} came: {self.all[-20:]!r}") from None

    async def first(self, matches: Callable[[T], bool] = lambda _: True, within: float = 10) -> T:
        return (await self.some(1, matches, within))[0]
