//! The pgoutput decoder, protocol version 1.
//!
//! Owns the meaning of the bytes of one message; borrows them and copies nothing but names of relations and
//! types. It may not do I/O, keep state between messages (the relation cache is the owner's), or interpret
//! values: a value is the text Postgres wrote.
//!
//! Fails with [`DecodeError`], never by panicking, whatever the bytes. A message must be consumed exactly:
//! left-over bytes are an error, because they mean that we misread the rest.
//!
//! Spec: PostgreSQL, "Logical Replication Message Formats".

mod tuple;

use crate::lsn::Lsn;
pub use tuple::{Cell, Cells, Tuple};

/// Microseconds from the Unix epoch to the Postgres epoch, 2000-01-01 00:00:00 UTC.
const POSTGRES_EPOCH_UNIX_US: i64 = 946_684_800_000_000;

/// Postgres time to Unix time, both in microseconds. Saturates, because the number comes from outside.
pub(crate) fn unix_us(postgres_us: i64) -> i64 {
    postgres_us.saturating_add(POSTGRES_EPOCH_UNIX_US)
}

/// One pgoutput message.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Message<'a> {
    /// A transaction begins; its changes follow, then [`Message::Commit`]. Transactions never interleave.
    Begin(Begin),
    /// The transaction is complete.
    Commit(Commit),
    /// The shape of a table. Comes before its first change in a session, and again after it changed.
    Relation(Relation),
    /// A new row.
    Insert {
        /// Oid of the table.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// Oid of the table.
        relation: u32,
        /// What is known of the row before.
        old: OldTuple<'a>,
        /// The row now; large values that did not change may be [`Cell::Unchanged`].
        new: Tuple<'a>,
    },
    /// A removed row.
    Delete {
        /// Oid of the table.
        relation: u32,
        /// What is known of the row; never [`OldTuple::None`] from a real server.
        old: OldTuple<'a>,
    },
    /// Tables were emptied.
    Truncate {
        /// Oids of the tables.
        relations: Vec<u32>,
        /// `TRUNCATE … CASCADE`.
        cascade: bool,
        /// `TRUNCATE … RESTART IDENTITY`.
        restart_identity: bool,
    },
    /// The name of a type that is not built in; comes before a relation that uses it.
    Type(TypeName),
    /// The transaction came from another node through replication.
    Origin,
    /// `pg_logical_emit_message`; only sent if asked for.
    LogicalMessage {
        /// Whether it belongs to the transaction around it.
        transactional: bool,
        /// Its position.
        lsn: Lsn,
        /// Its prefix.
        prefix: &'a str,
        /// Its content.
        content: &'a [u8],
    },
}

/// Start of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Position of the commit record. Commit order is the order of these.
    pub final_lsn: Lsn,
    /// Commit time, microseconds since 1970-01-01 UTC.
    pub commit_unix_us: i64,
    /// Transaction id, 32 bits, without its epoch.
    pub xid: u32,
}

/// End of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Position of the commit record, the same as [`Begin::final_lsn`].
    pub commit_lsn: Lsn,
    /// Position after the commit record. Confirming this means: do not send this transaction again.
    pub end_lsn: Lsn,
    /// Commit time, microseconds since 1970-01-01 UTC.
    pub commit_unix_us: i64,
}

/// What `ALTER TABLE … REPLICA IDENTITY` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing: Postgres refuses updates and deletes while the table is published for them.
    Nothing,
    /// All columns.
    Full,
    /// The columns of a unique index.
    Index,
}

/// The shape of a table as of the changes that follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Oid of the table.
    pub oid: u32,
    /// Its schema; never empty (the wire writes `pg_catalog` as an empty string).
    pub schema: String,
    /// Its name.
    pub name: String,
    /// What old rows carry.
    pub replica_identity: ReplicaIdentity,
    /// The published columns, in the order of the cells of a [`Tuple`]. Dropped and (before version 18)
    /// generated columns are absent.
    pub columns: Vec<RelationColumn>,
}

/// One column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Its name.
    pub name: String,
    /// Oid of its type.
    pub type_oid: u32,
    /// `atttypmod`, or -1.
    pub type_modifier: i32,
    /// Whether it is part of the replica identity. With [`ReplicaIdentity::Full`] every column is.
    pub is_key: bool,
}

/// The name of a type that is not built in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeName {
    /// Oid of the type. For a domain, Postgres sends the domain here and in the relation.
    pub oid: u32,
    /// Its schema; never empty.
    pub schema: String,
    /// Its name.
    pub name: String,
}

/// What is known of a row before its change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OldTuple<'a> {
    /// Nothing: the replica identity is the key, and the key did not change.
    None,
    /// The key columns; the others are [`Cell::Null`] and mean nothing.
    Key(Tuple<'a>),
    /// All columns (`REPLICA IDENTITY FULL`).
    Full(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// The cells, if there are any.
    #[must_use]
    pub fn tuple(&self) -> Option<Tuple<'a>> {
        match *self {
            OldTuple::None => None,
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => Some(tuple),
        }
    }
}

/// The bytes are not a pgoutput message of protocol version 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The message ends too early.
    #[error("the message ends inside {0}")]
    Truncated(&'static str),
    /// An unknown first byte.
    #[error("unknown message tag {0:#04x}")]
    UnknownTag(u8),
    /// An unknown byte where a closed set of bytes is allowed.
    #[error("unknown {what} {found:#04x}")]
    UnknownByte {
        /// What was being read.
        what: &'static str,
        /// The byte.
        found: u8,
    },
    /// A count or length is negative.
    #[error("negative {0}")]
    Negative(&'static str),
    /// A name is not UTF-8.
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// Bytes are left after the message.
    #[error("{0} bytes are left after the message")]
    TrailingBytes(usize),
}

/// Reads one message. `bytes` is the body of one XLogData.
///
/// # Errors
/// [`DecodeError`] if the bytes are not exactly one message of protocol version 1.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut input = Input(bytes);
    let message = match input.u8("the message tag")? {
        b'I' => {
            let relation = input.u32("the relation of an insert")?;
            expect_new(&mut input)?;
            Message::Insert { relation, new: Tuple::read(&mut input)? }
        }
        b'U' => update(&mut input)?,
        b'D' => {
            let relation = input.u32("the relation of a delete")?;
            let old = match input.u8("the old row marker")? {
                b'K' => OldTuple::Key(Tuple::read(&mut input)?),
                b'O' => OldTuple::Full(Tuple::read(&mut input)?),
                found => return Err(DecodeError::UnknownByte { what: "old row marker", found }),
            };
            Message::Delete { relation, old }
        }
        b'B' => Message::Begin(Begin {
            final_lsn: input.lsn("a begin")?,
            commit_unix_us: unix_us(input.i64("a begin")?),
            xid: input.u32("a begin")?,
        }),
        b'C' => {
            // Flags: "currently unused".
            input.u8("a commit")?;
            Message::Commit(Commit {
                commit_lsn: input.lsn("a commit")?,
                end_lsn: input.lsn("a commit")?,
                commit_unix_us: unix_us(input.i64("a commit")?),
            })
        }
        b'R' => Message::Relation(relation(&mut input)?),
        b'Y' => {
            let oid = input.u32("a type")?;
            let (schema, name) = (input.schema("a schema name")?, input.name("a type name")?);
            Message::Type(TypeName { oid, schema, name })
        }
        b'O' => {
            input.lsn("an origin")?;
            input.cstr("an origin name")?;
            Message::Origin
        }
        b'T' => truncate(&mut input)?,
        b'M' => {
            let flags = input.u8("a logical message")?;
            let lsn = input.lsn("a logical message")?;
            let prefix = input.cstr("a logical message prefix")?;
            let prefix =
                std::str::from_utf8(prefix).map_err(|_| DecodeError::NotUtf8("a logical message prefix"))?;
            let length = input.length("logical message length")?;
            let content = input.take(length, "a logical message")?;
            Message::LogicalMessage { transactional: flags & 1 != 0, lsn, prefix, content }
        }
        tag => return Err(DecodeError::UnknownTag(tag)),
    };
    match input.0.len() {
        0 => Ok(message),
        left => Err(DecodeError::TrailingBytes(left)),
    }
}

fn update<'a>(input: &mut Input<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = input.u32("the relation of an update")?;
    let old = match input.u8("the row marker of an update")? {
        b'N' => return Ok(Message::Update { relation, old: OldTuple::None, new: Tuple::read(input)? }),
        b'K' => OldTuple::Key(Tuple::read(input)?),
        b'O' => OldTuple::Full(Tuple::read(input)?),
        found => return Err(DecodeError::UnknownByte { what: "row marker", found }),
    };
    expect_new(input)?;
    Ok(Message::Update { relation, old, new: Tuple::read(input)? })
}

fn expect_new(input: &mut Input<'_>) -> Result<(), DecodeError> {
    match input.u8("the new row marker")? {
        b'N' => Ok(()),
        found => Err(DecodeError::UnknownByte { what: "new row marker", found }),
    }
}

fn relation(input: &mut Input<'_>) -> Result<Relation, DecodeError> {
    let oid = input.u32("a relation")?;
    let (schema, name) = (input.schema("a schema name")?, input.name("a relation name")?);
    let replica_identity = match input.u8("a replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        found => return Err(DecodeError::UnknownByte { what: "replica identity", found }),
    };
    let count = input.u16("the columns of a relation")?;
    // Not `with_capacity(count)` unchecked: a column takes at least ten bytes, so the message bounds it.
    let mut columns = Vec::with_capacity(usize::from(count).min(input.0.len() / 10));
    for _ in 0..count {
        columns.push(RelationColumn {
            is_key: input.u8("a column")? & 1 != 0,
            name: input.name("a column name")?,
            type_oid: input.u32("a column")?,
            type_modifier: input.u32("a column")?.cast_signed(),
        });
    }
    Ok(Relation { oid, schema, name, replica_identity, columns })
}

fn truncate<'a>(input: &mut Input<'a>) -> Result<Message<'a>, DecodeError> {
    let count = input.length("count of truncated relations")?;
    let flags = input.u8("a truncate")?;
    let oids = input.take(count.saturating_mul(4), "a truncate")?;
    let relations = oids.chunks_exact(4).map(|o| u32::from_be_bytes([o[0], o[1], o[2], o[3]])).collect();
    Ok(Message::Truncate { relations, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0 })
}

/// The rest of the message, consumed from the front. Every method checks the length first.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    #[inline]
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Truncated(what))?;
        self.0 = rest;
        Ok(*head)
    }

    #[inline]
    fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(what)?[0])
    }

    #[inline]
    fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array(what)?))
    }

    #[inline]
    fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        Ok(i64::from_be_bytes(self.array(what)?))
    }

    fn lsn(&mut self, what: &'static str) -> Result<Lsn, DecodeError> {
        Ok(Lsn(u64::from_be_bytes(self.array(what)?)))
    }

    /// A signed count or length on the wire.
    #[inline]
    fn length(&mut self, what: &'static str) -> Result<usize, DecodeError> {
        let length = i32::from_be_bytes(self.array(what)?);
        usize::try_from(length).map_err(|_| DecodeError::Negative(what))
    }

    #[inline]
    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated(what))?;
        self.0 = rest;
        Ok(head)
    }

    fn cstr(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(DecodeError::Truncated(what))?;
        let (name, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Ok(name)
    }

    fn name(&mut self, what: &'static str) -> Result<String, DecodeError> {
        let bytes = self.cstr(what)?;
        Ok(std::str::from_utf8(bytes).map_err(|_| DecodeError::NotUtf8(what))?.to_owned())
    }

    /// `pg_catalog` travels as an empty string.
    fn schema(&mut self, what: &'static str) -> Result<String, DecodeError> {
        let name = self.name(what)?;
        Ok(if name.is_empty() { "pg_catalog".to_owned() } else { name })
    }
}

#[cfg(test)]
mod tests;
