//! Tokens, claims, and what row-level security lets a subscriber see.
//!
//! Owns two questions and nothing else. *Who is this?* is answered by [`token`], pure code without a clock or a
//! network. *May they see this row?* is answered by [`visibility`], which asks Postgres under the subscriber's own
//! role and claims. The crate may not touch the engine, the replication session or a socket of a client, and it
//! never logs a token, a claim or a row value.
//!
//! Every failure is on the side of silence: what cannot be decided is not visible.
#![forbid(unsafe_code)]

pub mod identity;
pub mod messages;
pub mod token;
pub mod visibility;

pub use identity::Identity;
pub use messages::{Grants, ProbeError, ReplayedMessage, ReplayedPayload};
pub use token::{KeyError, TokenError, Verifier, VerifierConfig, sign_hs256};
pub use visibility::{
    AccessError, Authenticator, AuthenticatorConfig, BindingCondition, BindingRefusal, Column, Judgement,
    RoleAccess, RowImage, Table, TypeShape, TypeTree,
};
