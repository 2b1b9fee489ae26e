"""Broadcast with the official asynchronous client (version 1 frames). Spec: PROTOCOL.md §3, §10.2."""

from realtime import RealtimeSubscribeStates
from supabase import acreate_client

from conftest import subscribe
from tidewire import Inbox


def options(**broadcast):
    return {"config": {"broadcast": {"ack": False, "self": False, **broadcast}, "presence": {"key": "", "enabled": False}, "private": False}}


async def room(client, topic, **broadcast):
    channel = client.channel(topic, options(**broadcast))
    heard = Inbox()
    channel.on_broadcast("*", heard.push)
    statuses = await subscribe(channel)
    return channel, heard, statuses


async def test_a_broadcast_reaches_the_others_and_not_its_sender(connect, name):
    topic = name("others")
    ada, ada_heard, _ = await room(await connect(), topic)
    ben, ben_heard, _ = await room(await connect(), topic)
    content = {"text": 'héllo "quoted" \u2028 🌊', "nested": [1, None, True, 1.5]}
    await ada.send_broadcast("note", content)
    assert (await ben_heard.first())["payload"] == content
    await ben.send_broadcast("back", {})
    assert (await ada_heard.first())["event"] == "back"
    assert len(ada_heard.all) == 1


async def test_with_self_the_sender_hears_itself(connect, name):
    channel, heard, _ = await room(await connect(), name("self"), self=True)
    await channel.send_broadcast("mine", {"n": 1})
    assert (await heard.first())["payload"] == {"n": 1}


async def test_with_ack_the_server_answers(connect, name):
    channel, heard, _ = await room(await connect(), name("ack"), ack=True, self=True)
    answers = Inbox()
    push = await channel.push("broadcast", {"type": "broadcast", "event": "acked", "payload": {}})
    push.receive("ok", answers.push)
    await answers.first()
    assert len(heard.all) == 1


async def test_five_hundred_broadcasts_arrive_in_order(connect, name):
    topic = name("order")
    ada, _, _ = await room(await connect(), topic)
    _, heard, _ = await room(await connect(), topic)
    for n in range(500):
        await ada.send_broadcast("n", {"n": n})
    await heard.some(500, within=20)
    assert [message["payload"]["n"] for message in heard.all] == list(range(500))


async def test_leaving_closes_the_channel_and_it_can_be_joined_again(connect, name):
    topic = name("leave")
    client = await connect()
    channel, heard, statuses = await room(client, topic, self=True)
    await channel.unsubscribe()
    await statuses.first(lambda entry: entry[0] == RealtimeSubscribeStates.CLOSED)
    again, heard_again, _ = await room(client, topic, self=True)
    await again.send_broadcast("again", {})
    await heard_again.first()
    assert heard.all == []


async def test_the_whole_supabase_client_works(server, name):
    client = await acreate_client(server.info["url"], server.info["anon_key"])
    try:
        channel, heard, _ = await room(client, name("supabase"), self=True)
        await channel.send_broadcast("hello", {"from": "supabase-py"})
        assert (await heard.first())["payload"] == {"from": "supabase-py"}
    finally:
        await client.remove_all_channels()
