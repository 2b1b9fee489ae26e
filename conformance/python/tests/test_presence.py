"""Presence with the official asynchronous client. Spec: PROTOCOL.md §4, §10.2."""

from conftest import subscribe
from tidewire import Inbox


async def member(client, topic, key):
    channel = client.channel(topic, {"config": {"broadcast": {"ack": False, "self": False}, "presence": {"key": key, "enabled": True}, "private": False}})
    syncs, joins, leaves = Inbox(), Inbox(), Inbox()
    channel.on_presence_sync(lambda: syncs.push({key: [meta.get("name") for meta in metas] for key, metas in channel.presence_state().items()}))
    channel.on_presence_join(lambda key, _current, new: joins.push((key, [meta.get("name") for meta in new])))
    channel.on_presence_leave(lambda key, _current, left: leaves.push((key, [meta.get("name") for meta in left])))
    await subscribe(channel)
    return channel, syncs, joins, leaves


async def test_everybody_learns_who_joins_changes_and_leaves(connect, name):
    topic = name("life")
    ada, ada_syncs, ada_joins, ada_leaves = await member(await connect(), topic, "ada")
    await ada.track({"name": "Ada"})
    await ada_syncs.first(lambda state: state == {"ada": ["Ada"]})
    ben, ben_syncs, _, _ = await member(await connect(), topic, "ben")
    await ben_syncs.first(lambda state: state == {"ada": ["Ada"]})
    await ben.track({"name": "Ben"})
    await ada_joins.first(lambda entry: entry == ("ben", ["Ben"]))
    await ben.track({"name": "Benjamin"})
    await ada_syncs.first(lambda state: state.get("ben") == ["Benjamin"])
    await ben.untrack()
    await ada_leaves.first(lambda entry: entry == ("ben", ["Benjamin"]))
    await ada_syncs.first(lambda state: state == {"ada": ["Ada"]} and "ben" not in ada.presence_state())


async def test_a_connection_that_is_cut_is_a_leave(connect, name):
    topic = name("cut")
    _, syncs, _, leaves = await member(await connect(), topic, "ada")
    client = await connect(auto_reconnect=False)
    ben, _, _, _ = await member(client, topic, "ben")
    await ben.track({"name": "Ben"})
    await syncs.first(lambda state: "ben" in state)
    client._ws_connection.transport.abort()
    await leaves.first(lambda entry: entry[0] == "ben")


async def test_an_empty_room_syncs(connect, name):
    _, syncs, _, _ = await member(await connect(), name("empty"), "ada")
    assert await syncs.first() == {}
