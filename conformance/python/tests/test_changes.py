"""Postgres Changes with the official asynchronous client. Spec: PROTOCOL.md §5, §10.2."""

import re
import uuid

import pytest
from realtime import RealtimeSubscribeStates

from conftest import Listening, subscribe
from tidewire import Inbox


async def test_insert_update_and_delete_arrive_with_their_rows(server, connect, name):
    table = server.table(name("games"), "id int primary key, status text")
    listening = await Listening((await connect()).channel(name("three"))).on("*", table).live()
    server.sql(f"insert into {table} values (1, 'open')")
    server.sql(f"update {table} set status = 'won'")
    server.sql(f"delete from {table}")
    inserted, updated, deleted = await listening.changes.some(3)
    assert (inserted["type"], inserted["schema"], inserted["table"]) == ("INSERT", "public", table)
    assert inserted["record"] == {"id": 1, "status": "open"}
    assert "old_record" not in inserted
    assert inserted["columns"] == [{"name": "id", "type": "int4"}, {"name": "status", "type": "text"}]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", inserted["commit_timestamp"])
    assert (updated["record"], updated["old_record"]) == ({"id": 1, "status": "won"}, {"id": 1})
    assert deleted["old_record"] == {"id": 1}
    assert "record" not in deleted


@pytest.mark.parametrize("event", ["INSERT", "UPDATE", "DELETE"])
async def test_a_binding_for_one_event_hears_that_event(server, connect, name, event):
    table = server.table(name("games"), "id int primary key, n int")
    listening = await Listening((await connect()).channel(name("only"))).on(event, table).live()
    server.sql(f"insert into {table} values (1, 1), (2, 1)")
    server.sql(f"update {table} set n = 2")
    server.sql(f"delete from {table}")
    await listening.changes.some(2)
    assert [change["type"] for change in listening.changes.all] == [event, event]


@pytest.mark.parametrize(
    ("filter_text", "expected"),
    [("id=eq.3", [3]), ("id=gt.2", [3, 4, 99]), ("word=in.(b,d)", [2, 4, 99]), ("id=neq.1", [2, 3, 4, 99]), ("id=gte.2,word=eq.d", [4, 99])],
)
async def test_filters(server, connect, name, filter_text, expected):
    table = server.table(name("filtered"), "id int primary key, word text")
    last = server.table(name("last"), "id int primary key")
    listening = await Listening((await connect()).channel(name("filters"))).on("INSERT", table, filter=filter_text).on("INSERT", last).live()
    server.sql(f"insert into {table} values (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd'), (99, 'd')")
    server.sql(f"insert into {last} values (1)")
    await listening.changes.first(lambda change: change["table"] == last)
    assert [change["record"]["id"] for change in listening.changes.all if change["table"] == table] == expected


async def test_replica_identity_full_shows_the_old_row(server, connect, name):
    table = server.table(name("full"), "id int primary key, status text", identity="full")
    listening = await Listening((await connect()).channel(name("full"))).on("*", table).live()
    server.sql(f"insert into {table} values (1, 'open')")
    server.sql(f"update {table} set status = 'won'")
    _, updated = await listening.changes.some(2)
    assert updated["old_record"] == {"id": 1, "status": "open"}


async def test_five_hundred_inserts_arrive_in_order_each_once(server, connect, name):
    table = server.table(name("rows"), "id int primary key")
    listening = await Listening((await connect()).channel(name("rows"))).on("INSERT", table).live()
    server.sql(f"do $$ begin for n in 1..500 loop insert into {table} values (n); commit; end loop; end $$")
    await listening.changes.some(500, within=20)
    assert [change["record"]["id"] for change in listening.changes.all] == list(range(1, 501))


async def test_row_level_security_is_judged_for_each_user(server, connect, name):
    table = server.table(name("own"), "id int primary key, owner uuid, body text", rls=True, identity="full")
    marker = server.table(name("marker"), "id int primary key")
    server.sql(f"create policy own on {table} for select using (owner = auth.uid())")
    users = [str(uuid.uuid4()) for _ in range(2)]
    heard = []
    for user in users:
        client = await connect()
        await client.set_auth(server.token(role="authenticated", sub=user))
        heard.append(await Listening(client.channel(name("rls"))).on("*", table).on("INSERT", marker).live())
    server.sql(f"insert into {table} values (1, '{users[0]}', 'secret a'), (2, '{users[1]}', 'secret b')")
    server.sql(f"delete from {table} where id = 2")
    server.sql(f"insert into {marker} values (1)")
    for listening, own in zip(heard, (1, 2), strict=True):
        await listening.changes.first(lambda change: change["table"] == marker)
        mine = [change for change in listening.changes.all if change["table"] == table]
        assert [(c["type"], (c.get("record") or c["old_record"])["id"]) for c in mine] == [("INSERT", own), ("DELETE", 2)]
        assert mine[1]["old_record"] == {"id": 2}


async def test_a_token_set_while_joined_changes_what_is_seen(server, connect, name):
    table = server.table(name("refresh"), "id int primary key, owner uuid", rls=True)
    marker = server.table(name("marker"), "id int primary key")
    server.sql(f"create policy own on {table} for select using (owner = auth.uid())")
    ada, ben = str(uuid.uuid4()), str(uuid.uuid4())
    client = await connect()
    await client.set_auth(server.token(role="authenticated", sub=ada))
    listening = await Listening(client.channel(name("refresh"))).on("*", table).on("INSERT", marker).live()
    await client.set_auth(server.token(role="authenticated", sub=ben))
    await listening.is_live(2)
    server.sql(f"insert into {table} values (1, '{ada}'), (2, '{ben}')")
    server.sql(f"insert into {marker} values (1)")
    await listening.changes.first(lambda change: change["table"] == marker)
    assert [change["record"]["id"] for change in listening.changes.all if change["table"] == table] == [2]


async def test_an_expired_token_is_a_channel_error(server, connect, name):
    client = await connect()
    await client.set_auth(server.token(role="authenticated", exp=1))
    statuses = Inbox()
    await client.channel(name("expired")).subscribe(lambda status, error: statuses.push((status, error)))
    status, error = await statuses.first(within=12)
    assert status == RealtimeSubscribeStates.CHANNEL_ERROR
    assert "InvalidJWTToken: Token has expired" in str(error)


async def test_a_private_channel_is_refused_as_unauthorized(connect, name):
    options = {"config": {"broadcast": {"ack": False, "self": False}, "presence": {"key": "", "enabled": False}, "private": True}}
    statuses = Inbox()
    await (await connect()).channel(name("private"), options).subscribe(lambda status, error: statuses.push((status, error)))
    status, error = await statuses.first(within=12)
    assert status == RealtimeSubscribeStates.CHANNEL_ERROR
    assert "Unauthorized: " in str(error)


async def test_an_invalid_filter_errors_the_channel_after_the_join(server, connect, name):
    table = server.table(name("invalid"), "id int primary key")
    channel = (await connect()).channel(name("invalid"))
    channel.on_postgres_changes("*", lambda _: None, table=table, schema="public", filter="nope=eq.1")
    statuses = await subscribe(channel)
    _, error = await statuses.first(lambda entry: entry[0] == RealtimeSubscribeStates.CHANNEL_ERROR, within=20)
    assert "invalid column for filter nope" in str(error)
