from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import pytest_asyncio
from realtime import AsyncRealtimeChannel, AsyncRealtimeClient, RealtimeSubscribeStates

from tidewire import Inbox, Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def _numbers() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture
def name(_numbers: Iterator[int]) -> Callable[[str], str]:
    """Makes names that no other test has used."""
    return lambda word: f"{word}_{next(_numbers)}"


@pytest_asyncio.fixture
async def connect(server: Server) -> AsyncIterator[Callable[..., Awaitable[AsyncRealtimeClient]]]:
    """Opens clients that are closed after the test."""
    opened: list[AsyncRealtimeClient] = []

    async def open_client(token: str | None = None, **options: object) -> AsyncRealtimeClient:
        client = AsyncRealtimeClient(server.info["ws_url"], token or server.info["anon_key"], **options)
        await client.connect()
        opened.append(client)
        return client

    yield open_client
    for client in opened:
        await client.close()


Statuses = Inbox[tuple[RealtimeSubscribeStates, Exception | None]]


async def subscribe(channel: AsyncRealtimeChannel) -> Statuses:
    """Subscribes; anything but SUBSCRIBED as the first status fails the test."""
    statuses: Statuses = Inbox()
    await channel.subscribe(lambda status, error: statuses.push((status, error)))
    status, error = await statuses.first()
    assert status == RealtimeSubscribeStates.SUBSCRIBED, f"{status} {error}"
    return statuses


class Listening:
    """A channel with one binding, subscribed and live."""

    def __init__(self, channel: AsyncRealtimeChannel) -> None:
        self.channel = channel
        self.changes: Inbox[dict] = Inbox()
        self.system: Inbox[object] = Inbox()
        channel.on_system(self.system.push)

    def on(self, event: str, table: str, **options: object) -> Listening:
        self.channel.on_postgres_changes(event, lambda payload: self.changes.push(payload["data"]), table=table, schema="public", **options)
        return self

    async def live(self) -> Listening:
        self.statuses = await subscribe(self.channel)
        await self.is_live(1)
        return self

    async def is_live(self, count: int, within: float = 30) -> None:
        await self.system.some(count, lambda payload: payload.message == "Subscribed to PostgreSQL", within)
