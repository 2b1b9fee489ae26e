//! Owns the names and numbers that operators and clients see: operational codes with their meaning and advice,
//! and WebSocket close codes. It knows nothing about when they are emitted.
//!
//! Names that existing clients and dashboards know are kept letter for letter; ours follow the same style. A code
//! is never renamed or reused.
//!
//! Spec: PROTOCOL.md §7.4, §1.2, §1.11.

use std::fmt;

/// The connection did its work. RFC 6455 §7.4.1.
pub const CLOSE_NORMAL: u16 = 1000;

/// The join was refused in a way that retrying on this socket cannot fix (unknown tenant, joins rate).
pub const CLOSE_GOING_AWAY: u16 = 1001;

/// The peer broke RFC 6455.
pub const CLOSE_PROTOCOL: u16 = 1002;

/// A frame or message is larger than the limit.
pub const CLOSE_TOO_BIG: u16 = 1009;

/// The server restarts or the tenant was reloaded: reconnect.
pub const CLOSE_RESTART: u16 = 1012;

/// The client reads more slowly than its channels produce, and its outbox is full.
///
/// Why a number of our own: nothing in 1000 to 1015 says "you are too slow", and operators must be able to tell
/// this apart from a restart. 4000 to 4999 is for private use (RFC 6455 §7.4.2); realtime-js and realtime-py
/// reconnect after every code but 1000, so the choice changes nothing for them; 4008 recalls HTTP 408.
pub const CLOSE_SLOW_READER: u16 = 4008;

/// Where a code shows itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Surface {
    /// The HTTP answer to a WebSocket handshake (text only).
    Handshake,
    /// The `reason` of an error reply to a join, as `Code: text`.
    JoinReply,
    /// A `system` message (text without the code).
    System,
    /// An HTTP answer of the API.
    Http,
    /// A WebSocket close frame.
    Close,
    /// The log and the error metric only.
    Log,
}

macro_rules! operational_codes {
    ($( $name:ident: [$($surface:ident)+], $meaning:literal, $advice:literal; )+) => {
        /// A condition that an operator may have to act on. The wire name is the variant's name.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum OperationalCode {
            $( #[doc = $meaning] $name, )+
        }

        /// Every code, in the order of the table.
        pub const ALL: &[OperationalCode] = &[$( OperationalCode::$name, )+];

        impl OperationalCode {
            /// Every code, in the order of the table.
            pub const ALL: &'static [OperationalCode] = ALL;

            /// The name on the wire, in logs and in metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $( OperationalCode::$name => stringify!($name), )+ }
            }

            /// What has happened.
            pub const fn meaning(self) -> &'static str {
                match self { $( OperationalCode::$name => $meaning, )+ }
            }

            /// What to do about it: the statement to run or the setting to change.
            pub const fn advice(self) -> &'static str {
                match self { $( OperationalCode::$name => $advice, )+ }
            }

            /// Where it can be seen.
            pub const fn surface(self) -> &'static [Surface] {
                match self { $( OperationalCode::$name => &[$( Surface::$surface, )+], )+ }
            }
        }
    };
}

operational_codes! {
    // Joining.
    TopicNameRequired: [JoinReply],
        "a join named the topic `realtime:` without a name behind it",
        "give the channel a name, as in `channel('room')`";
    InvalidJoinPayload: [Log],
        "part of a join payload could not be read and was replaced by its default",
        "look at the paths in the log line; booleans are true or false, `postgres_changes` is an array of objects";
    UnknownErrorOnChannel: [JoinReply Log],
        "a join failed for a reason that has no code of its own, such as a payload that is not an object",
        "send an object as join payload; if it is one, report the log line as a bug";
    RealtimeRestarting: [JoinReply],
        "the server is shutting down and takes no new joins",
        "nothing to do: clients reconnect by themselves; if it lasts, look at why the process is stopping";
    RlsPolicyError: [Log],
        "a policy of `realtime.messages` raised, or the token's role does not exist; the client sees `Unauthorized`",
        "try the policies under this role and these claims; `explain` which one raises";
    UnableToSetPolicies: [Log],
        "the policies of `realtime.messages` could not be evaluated for another reason",
        "look at the database error in the log line";
    QueryCanceled: [JoinReply System Log],
        "evaluating the policies took longer than the statement timeout",
        "make the policies of `realtime.messages` cheaper: add an index, write `(select auth.uid())`";
    MissingPartition: [JoinReply Log],
        "there is no partition of `realtime.messages` for today",
        "give the server `database.maintenance_url`, or create the day's partition";
    IncreaseConnectionPool: [JoinReply Log],
        "no connection was free to evaluate policies in time",
        "raise `database.pool_size`, or make the policies cheaper";
    UnableToBroadcastChanges: [Log],
        "a row of `realtime.messages` was not broadcast: a required column is null or the payload is too large",
        "insert through `realtime.send`; the log line names what is missing";
    MigrationsFailedToRun: [Log],
        "the objects of schema `realtime` could not be made",
        "give `database.maintenance_url` a login that may create them, or apply them yourself";
    PartitionCreationFailed: [Log],
        "the daily partitions of `realtime.messages` could not be kept",
        "check that `database.maintenance_url` owns the table; it is tried again every minute";
    PrivateOnly: [JoinReply],
        "a public join on a tenant that allows private channels only",
        "join with `config: { private: true }`, or set `private_only` of the tenant to false";
    UnableToReplayMessages: [JoinReply],
        "a join asked for a replay with wrong parameters, on a public channel, or the query failed",
        "send integers as `since` (ms) and `limit` (1 to 25) and join the channel as private";
    TooManyBindings: [System Log],
        "a channel asked for more Postgres Changes bindings than allowed",
        "split the bindings over several channels, or raise the limit of bindings per channel";

    // Tenant and credentials.
    TenantNotFound: [Handshake JoinReply Http Log],
        "no tenant has the name that the Host header starts with",
        "connect to the tenant's own host name, or add the host name to the configured tenant";
    RealtimeDisabledForTenant: [Handshake JoinReply],
        "the tenant is suspended",
        "lift the suspension: set `suspend` of the tenant to false";
    MissingAPIKey: [Handshake],
        "a connection came without any credential",
        "send the key as query parameter `apikey` or header `x-api-key`";
    MalformedJWT: [Handshake JoinReply System Http],
        "a token does not consist of three decodable parts",
        "pass the token itself, without `Bearer` and without quotes; `sb_` keys must go through the gateway";
    JwtSignatureError: [Handshake JoinReply System Http],
        "the signature of a token does not match the tenant's key",
        "compare the tenant's JWT secret with the one that signed the token; both must be the same bytes";
    JwtSignerError: [Handshake JoinReply System Log],
        "no configured key can verify the token's algorithm or key id",
        "sign with HS256 and the tenant's secret, or add the key id to the tenant's JWKS";
    InvalidJWTToken: [Handshake JoinReply System Http],
        "a token has expired, or lacks the claim `role` or `exp`",
        "refresh the token before it expires (`setAuth`), and include both claims; check the server's clock";
    ErrorConnectingToWebsocket: [Handshake Log],
        "a handshake failed for a reason that has no code of its own",
        "look at the cause in the log line; non-numeric `exp` or `iat` claims end here";
    Unauthorized: [JoinReply System Http],
        "the policies on `realtime.messages` let this token read neither broadcasts nor presence of the topic",
        "create policy \"read\" on realtime.messages for select to authenticated using (realtime.topic() = 'room')";
    AuthorizationFailed: [JoinReply System Log],
        "the policies of a private channel or table could not be evaluated",
        "run the policy's expression by hand under the claims' role; the cause is in the log line";
    AuthenticatorUnsafe: [Log],
        "the role that judges for users is a superuser, bypasses row-level security, or inherits rights",
        "create role tidewire_authenticator login nosuperuser nobypassrls noinherit; grant anon, authenticated, service_role to it";

    // Limits.
    ConnectionRateLimitReached: [Handshake JoinReply],
        "the tenant has as many connected users as it may have",
        "raise `max_concurrent_users` of the tenant, or close idle connections";
    JoinsRateLimitReached: [Handshake Log],
        "a connection was refused because the tenant joins channels too fast",
        "let clients back off, or raise `limits.max_joins_per_second`";
    ClientJoinRateLimitReached: [JoinReply],
        "the tenant's clients join faster than allowed",
        "raise `max_joins_per_second` of the tenant, or look for a client that joins in a loop";
    ChannelRateLimitReached: [JoinReply Log],
        "one socket has joined as many channels as it may",
        "leave channels that are no longer shown, or raise `max_channels_per_client` of the tenant";
    MessagePerSecondRateLimitReached: [System Log],
        "the tenant's messages exceed their rate; receiving channels are shut down",
        "raise `max_events_per_second` of the tenant, or send fewer, larger messages";
    PresenceRateLimitReached: [System Log],
        "the tenant's presence messages exceed their rate",
        "raise `max_presence_events_per_second` of the tenant, or track less often";
    ClientPresenceRateLimitReached: [System Log],
        "one channel sent more presence messages in 30 s than allowed and was shut down",
        "track only when the state changes, at most every few seconds, or raise the presence limit per client";
    SlowReader: [Close Log],
        "a client did not read for so long that its outbox is full; it was closed with 4008",
        "let the client subscribe to less or read faster, or raise the outbox limit per connection";
    IdleTimeout: [Close Log],
        "a connection sent nothing for the idle timeout, not even a heartbeat",
        "send a heartbeat at least every 30 s; check that proxies keep idle connections open";

    // Channels and frames.
    ChannelShutdown: [Log],
        "the server ended a channel; the log line and the system message say why",
        "look at the reason; the client may join again once it is gone";
    MalformedWebSocketMessage: [Log],
        "a frame was not JSON of the expected shape, or not a known binary frame; it was dropped",
        "compare the client's `vsn` with the frames it sends: 1.0.0 means objects, 2.0.0 arrays";
    UnknownPresenceEvent: [Log],
        "a presence push is neither `track` nor `untrack`",
        "send `{\"type\":\"presence\",\"event\":\"track\",\"payload\":{}}`, or `untrack`";
    InvalidPresencePayload: [Log],
        "a presence push carries something that cannot be tracked",
        "send an object as presence payload";

    // Postgres Changes: subscriptions.
    RealtimeDisabledForConfiguration: [System Log],
        "a binding matches no table of the publication, or its filter or columns were refused",
        "alter publication supabase_realtime add table public.games; then check the filter's column names and types";
    UnableToSubscribeToPostgres: [System Log],
        "a subscription could not be made yet and is retried",
        "check that the database is reachable and not out of connections; the cause is in the log line";
    UnableToConnectToProject: [JoinReply Log],
        "the tenant's database cannot be reached",
        "check host, port, user and password of the tenant's database and that it accepts connections";
    InitializingProjectConnection: [JoinReply],
        "the tenant's database was not ready within the time a join may wait",
        "nothing to do if it is transient: clients retry; otherwise look at the database's load and start-up log";

    // The database.
    DatabaseUnreachable: [Log],
        "no connection to the database server could be opened",
        "check the host and port in the database URL, the firewall, and `listen_addresses` of the server";
    DatabaseAuthenticationFailed: [Log],
        "the database refused the user or the password",
        "check user and password in the database URL and the matching line of pg_hba.conf";
    WalLevelNotLogical: [Log],
        "the database does not write enough to its log for logical replication",
        "alter system set wal_level = 'logical'; then restart the database";
    PublicationMissing: [Log],
        "the publication of the change stream does not exist",
        "create publication supabase_realtime for table public.games";
    ReplicationPrivilegeMissing: [Log],
        "the database role may not start replication",
        "alter role <role> with replication; and allow `replication` for it in pg_hba.conf";
    ReplicationSlotsExhausted: [Log],
        "all replication slots of the database are in use",
        "drop unused slots (select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active), or raise max_replication_slots and restart";
    WalSendersExhausted: [Log],
        "all WAL senders of the database are in use",
        "alter system set max_wal_senders = 20; then restart the database";
    ReplicationSlotInUse: [Log],
        "another session streams from our slot, most likely another server with the same slot name",
        "stop the other server, or give this one its own slot name; select active_pid from pg_replication_slots shows who holds it";
    ReplicationSlotLost: [Log],
        "the database discarded the WAL that our slot needed; changes were lost and clients are told",
        "alter system set max_slot_wal_keep_size = '4GB'; select pg_reload_conf(); keep the server running";
    ChangeStreamInterrupted: [System Log],
        "the replication session ended unexpectedly and is being re-opened",
        "nothing to do if it recovers; otherwise look for database restarts, failovers and wal_sender_timeout";
}

impl fmt::Display for OperationalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_code_says_what_happened_and_what_to_do() {
        let mut names = HashSet::new();
        for code in ALL {
            assert!(names.insert(code.as_str()), "{code} occurs twice");
            assert!(code.as_str().starts_with(|c: char| c.is_ascii_uppercase()));
            assert!(!code.surface().is_empty(), "{code} is seen nowhere");
            for sentence in [code.meaning(), code.advice()] {
                assert!(sentence.len() > 15, "{code}: `{sentence}` says nothing");
                assert!(!sentence.ends_with('.'), "{code}: messages are fragments");
                assert!(
                    sentence.starts_with(|c: char| c.is_ascii_lowercase()),
                    "{code}: messages are lowercase"
                );
            }
        }
    }

    #[test]
    fn names_known_to_existing_clients_are_kept() {
        assert_eq!(OperationalCode::MissingAPIKey.to_string(), "MissingAPIKey");
        assert_eq!(OperationalCode::InvalidJWTToken.as_str(), "InvalidJWTToken");
        assert_eq!(OperationalCode::TopicNameRequired.as_str(), "TopicNameRequired");
    }
}
