"""Private channels and broadcast from the database, with the official asynchronous client (version 1 frames).

Spec: PROTOCOL.md §3.9, §6.5, §10.2.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from realtime import RealtimeSubscribeStates

from conftest import Statuses, subscribe
from tidewire import Inbox, Server

ALL = ("read broadcast", "read presence", "write broadcast", "write presence")


@pytest.fixture(scope="module")
def allow(server: Server) -> Callable[..., None]:
    """Policies that ask a table, as an application's would; the fixture writes to it."""
    server.sql("""
        create table public.room_rights (topic text, who uuid, verb text, extension text);
        grant select on public.room_rights to authenticated;
        create policy "room rights to read" on realtime.messages for select to authenticated using (exists (
          select from public.room_rights r where r.topic = realtime.topic() and r.verb = 'read' and r.extension = messages.extension and r.who = auth.uid()));
        create policy "room rights to write" on realtime.messages for insert to authenticated with check (exists (
          select from public.room_rights r where r.topic = realtime.topic() and r.verb = 'write' and r.extension = messages.extension and r.who = auth.uid()));
    """)

    def write(topic: str, who: uuid.UUID, things: tuple[str, ...] = ALL) -> None:
        for thing in things:
            server.sql("insert into public.room_rights values (%s, %s, %s, %s)", topic, who, *thing.split(" "))

    return write


def private(client, topic, *, ack=False, presence=False):
    return client.channel(
        topic,
        {"config": {"broadcast": {"ack": ack, "self": False}, "presence": {"key": "", "enabled": presence}, "private": True}},
    )


@pytest.fixture
def join(server, connect):
    """A private channel of a user: the channel, what it hears, its statuses."""

    async def open_channel(topic, who=None, *, token=None, **options):
        client = await connect(token or server.token(role="authenticated", sub=str(who)))
        channel = private(client, topic, **options)
        heard = Inbox()
        channel.on_broadcast("*", heard.push)
        return channel, heard, await subscribe(channel)

    return open_channel


async def test_members_hear_each_other(allow, join, name):
    topic = name("members")
    ada, ben = uuid.uuid4(), uuid.uuid4()
    allow(topic, ada)
    allow(topic, ben)
    speaker, _, _ = await join(topic, ada)
    _, heard, _ = await join(topic, ben)
    await speaker.send_broadcast("hello", {"a": [1, "ü"]})
    assert (await heard.first())["payload"] == {"a": [1, "ü"]}


async def test_a_stranger_is_refused(allow, connect, server, name):
    topic = name("closed")
    channel = private(await connect(server.token(role="authenticated", sub=str(uuid.uuid4()))), topic)
    statuses: Statuses = Inbox()
    await channel.subscribe(lambda status, error: statuses.push((status, error)))
    status, error = await statuses.first(within=15)
    assert status == RealtimeSubscribeStates.CHANNEL_ERROR
    assert f"Unauthorized: You do not have permissions to read from this Channel topic: {topic}" in str(error)


async def test_who_may_not_write_is_not_heard(allow, join, name):
    topic = name("mute")
    mute, speaker = uuid.uuid4(), uuid.uuid4()
    allow(topic, mute, ("read broadcast",))
    allow(topic, speaker)
    quiet, quiet_heard, _ = await join(topic, mute)
    loud, loud_heard, _ = await join(topic, speaker)
    await quiet.send_broadcast("denied", {})
    await loud.send_broadcast("allowed", {})
    assert (await quiet_heard.first())["event"] == "allowed"
    # Said last by somebody who may: nothing of the quiet one came before it.
    other, _, _ = await join(topic, speaker)
    await other.send_broadcast("last", {})
    assert (await loud_heard.first())["event"] == "last"


async def test_presence_of_a_private_room(allow, join, name):
    topic = name("present")
    ada, ben = uuid.uuid4(), uuid.uuid4()
    allow(topic, ada)
    allow(topic, ben)
    first, _, _ = await join(topic, ada, presence=True)
    second, _, _ = await join(topic, ben, presence=True)
    joins = Inbox()
    second.on_presence_join(lambda key, before, new: joins.push(new))
    await first.track({"name": "Ada"})
    (new,) = [await joins.first()]
    assert new[0]["name"] == "Ada"


async def test_the_database_sends_to_members(server, allow, join, name):
    topic = name("database")
    ada = uuid.uuid4()
    allow(topic, ada, ("read broadcast",))
    _, heard, _ = await join(topic, ada)
    server.sql("select realtime.send('{\"n\": 1}', 'said', %s)", topic)
    server.sql("select realtime.send_binary('bytes', 'bytes', %s)", topic)  # version 1 has no form for them
    server.sql("select realtime.send('{\"id\": \"mine\"}', 'last', %s, true)", topic)
    said, last = await heard.some(2)
    assert (said["event"], said["payload"]["n"], last["event"], last["payload"]) == ("said", 1, "last", {"id": "mine"})
    assert said["payload"]["id"] == said["meta"]["id"]
    uuid.UUID(last["meta"]["id"])


async def test_a_trigger_tells_a_room(server, join, name):
    table = name("scores")
    server.sql(f"""
        create table public.{table} (id int primary key, points int);
        create function public.tell_{table}() returns trigger language plpgsql security definer as $$
        begin
          perform realtime.broadcast_changes('{table}', tg_op, tg_op, tg_table_name, tg_table_schema, new, old);
          return null;
        end $$;
        create trigger tell after insert or update or delete on public.{table} for each row execute function public.tell_{table}();
    """)
    _, heard, _ = await join(table, token=server.info["service_key"])
    server.sql(f"insert into {table} values (1, 0)")
    server.sql(f"update {table} set points = 3")
    server.sql(f"delete from {table}")
    told = [(message["event"], message["payload"]["record"], message["payload"]["old_record"]) for message in await heard.some(3)]
    assert told == [
        ("INSERT", {"id": 1, "points": 0}, None),
        ("UPDATE", {"id": 1, "points": 3}, {"id": 1, "points": 0}),
        ("DELETE", None, {"id": 1, "points": 3}),
    ]


async def test_a_public_room_hears_what_is_sent_to_it(server, connect, name):
    topic = name("public")
    channel = (await connect()).channel(topic)
    heard = Inbox()
    channel.on_broadcast("*", heard.push)
    await subscribe(channel)
    server.sql("select realtime.send('{}', 'private', %s)", topic)
    server.sql("select realtime.send('{}', 'public', %s, false)", topic)
    assert (await heard.first())["event"] == "public"
    assert len(heard.all) == 1
