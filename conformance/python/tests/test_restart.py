"""A restart of the server: the official client comes back by itself. Spec: PROTOCOL.md §1.11, §10.2."""

import asyncio
import signal

import pytest

from conftest import Listening
from tidewire import Inbox


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_after_a_restart_the_client_rejoins_and_hears_changes(server, connect, name, how):
    table = server.table(name("restarted"), "id int primary key")
    client = await connect()
    channel = client.channel(name("restart"), {"config": {"broadcast": {"ack": False, "self": True}, "presence": {"key": "", "enabled": False}, "private": False}})
    heard = Inbox()
    channel.on_broadcast("*", heard.push)
    listening = await Listening(channel).on("*", table).live()
    await asyncio.to_thread(server.signal, how)
    await asyncio.to_thread(server.run)
    await listening.is_live(2, within=40)
    server.sql(f"insert into {table} values (1)")
    await listening.changes.first(lambda change: change["record"]["id"] == 1)
    await channel.send_broadcast("again", {})
    await heard.first(lambda message: message["event"] == "again")
