//! Broadcast from the database: every row inserted into `realtime.messages` is a broadcast (`PROTOCOL.md`
//! §3.9). It comes through the same stream as row changes and goes to the members of its topic, whose
//! permission to read was decided at their join.

use std::sync::Arc;

use bytes::Bytes;
use tidewire_engine::{Body, Domain, Message as Frame, PeerMessage, Rates};
use tidewire_protocol::frame::Encoding;
use tidewire_protocol::{json, topic};
use tidewire_replication::{Cell, Relation, Tuple};

use crate::shard::Shards;

/// Rows may arrive under the name of the table or of a partition.
pub(super) fn is_messages(relation: &Relation) -> bool {
    relation.schema == "realtime"
        && relation.name.strip_prefix("messages").is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// Sends a row to its topic. A row that cannot be sent is reported and dropped.
pub(super) fn publish(
    shards: &Shards,
    rates: &Rates,
    relation: &Relation,
    row: Tuple<'_>,
    max_payload_bytes: usize,
) {
    let message = if rates.events.is_triggered() {
        Err("too_many_requests")
    } else {
        message(relation, row, max_payload_bytes)
    };
    match message {
        Ok(message) => {
            rates.events.add(1);
            shards.send_to_all(&PeerMessage::Publish { message: Arc::new(message), is_presence: false });
        }
        Err(problem) => {
            tracing::warn!(
                code = "UnableToBroadcastChanges",
                problem,
                "a row of realtime.messages was not sent"
            );
        }
    }
}

fn message(relation: &Relation, row: Tuple<'_>, max_payload_bytes: usize) -> Result<Frame, &'static str> {
    let text = |name: &str| {
        let position = relation.columns.iter().position(|column| column.name == name)?;
        match row.get(position)? {
            Cell::Text(text) => Some(text),
            _ => None,
        }
    };
    let id = text("id").ok_or("id_missing")?;
    let event = text("event").ok_or("event_missing")?;
    let sub_topic = text("topic").ok_or("topic_missing")?;
    let is_private = text("private").ok_or("private_missing")? == "t";
    text("inserted_at").ok_or("inserted_at_missing")?;
    let (encoding, payload) = match (text("binary_payload"), text("payload")) {
        (Some(hex), _) => (Encoding::Bytes, unhex(hex).ok_or("payload_invalid")?),
        (None, Some(json)) => (Encoding::Json, json.as_bytes().to_vec()),
        (None, None) => return Err("payload_missing"),
    };
    if payload.len() + 6 > max_payload_bytes {
        return Err("payload_size_exceeded");
    }
    let mut metadata = Vec::with_capacity(48);
    metadata.extend_from_slice(b"{\"id\":");
    json::write_string(&mut metadata, id);
    metadata.push(b'}');
    let body = Body::UserBroadcast {
        event: event.to_owned(),
        metadata: String::from_utf8(metadata).map_err(|_| "id_invalid")?,
        encoding,
        payload: Bytes::from(payload),
    };
    let domain = if is_private { Domain::Private } else { Domain::Public };
    Ok(Frame::in_domain(domain, &format!("{}{sub_topic}", topic::PREFIX), body).with_id(id))
}

/// `\xdead` as Postgres prints bytes.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    digits.chunks(2).map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_postgres_prints_them() {
        assert_eq!(unhex("\\xDEad00"), Some(vec![0xDE, 0xAD, 0]));
        assert_eq!(unhex("\\x"), Some(Vec::new()));
        assert_eq!(unhex("\\xd"), None);
        assert_eq!(unhex("dead"), None);
    }
}
