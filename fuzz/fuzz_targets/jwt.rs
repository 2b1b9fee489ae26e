//! Tokens against a verifier with every kind of key: no panic, no forgery, answers of bounded length.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tidewire_authz::token::{TokenError, Verifier, VerifierConfig};

/// The private halves of these keys are gone, and the secret is too long to be guessed.
const JWKS: &str = include_str!("../../crates/tidewire-authz/src/token/tests/jwks.json");
const SECRET: &[u8] = b"7f0c4d6f0e2b4c5f9d3a8b1e6c7d2f4a9b8e7d6c5b4a39281706f5e4d3c2b1a0";
const NOW: i64 = 1_800_000_000;

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    Verifier::from_config(VerifierConfig {
        secret: Some(SECRET),
        jwks: Some(JWKS),
        claim_validators: Some(r#"{"aud":"authenticated"}"#),
        roles: vec!["anon".into(), "authenticated".into()],
    })
    .expect("the key set of the tests is usable")
});

#[derive(Arbitrary, Debug)]
enum Token<'a> {
    /// As it would come from a socket. May be a vector of the tests and verify.
    Raw(&'a str),
    /// Three parts of any content.
    Parts { header: &'a [u8], claims: &'a [u8], signature: &'a [u8] },
    /// Through to the signature check, whatever the algorithm.
    Headed { alg: u8, kid: u8, claims: &'a [u8], signature: &'a [u8] },
    /// Key sets and validators are the operator's, and yet.
    Config { jwks: &'a str, claim_validators: &'a str },
}

const ALGORITHMS: &[&str] = &[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519",
    "Ed448",
];
const KIDS: &[&str] = &["rsa-old", "rsa-new", "p256-old", "p384", "p521", "ed25519-old", "oct-1", "nobody"];

fn check_error(error: &TokenError) {
    assert!(!error.code().is_empty() && error.push_message().len() < 2_000);
    // The role of a token is kept as it was claimed, but not told.
    assert!(error.to_string().len() < 2_000 && error.join_reason().len() < 2_000);
    assert!(!error.connect_answer().1.chars().any(char::is_control));
}

/// Base64url without padding: the verifier's own decoder stays the only one in the target's dependencies.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len() * 4 / 3 + 2);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(char::from(DIGITS[(word >> (18 - 6 * digit)) as usize & 63]));
        }
    }
    text
}

fn refused(header: &[u8], claims: &[u8], signature: &[u8]) {
    let token = format!("{}.{}.{}", base64(header), base64(claims), base64(signature));
    let error = VERIFIER.verify(&token, NOW).expect_err("nobody can sign with these keys");
    check_error(&error);
    // Nothing behind the signature is ever told to who cannot sign.
    assert!(matches!(
        error,
        TokenError::Malformed | TokenError::Signer | TokenError::SignerForKid { .. } | TokenError::Signature
    ));
}

fuzz_target!(|token: Token<'_>| match token {
    Token::Raw(token) => {
        if let Err(error) = VERIFIER.verify(token, NOW) {
            check_error(&error);
        }
    }
    Token::Parts { header, claims, signature } => refused(header, claims, signature),
    Token::Headed { alg, kid, claims, signature } => {
        let alg = ALGORITHMS[usize::from(alg) % ALGORITHMS.len()];
        let kid = KIDS[usize::from(kid) % KIDS.len()];
        refused(format!(r#"{{"alg":"{alg}","kid":"{kid}"}}"#).as_bytes(), claims, signature);
    }
    Token::Config { jwks, claim_validators } => {
        let config = VerifierConfig {
            secret: Some(SECRET),
            jwks: Some(jwks),
            claim_validators: Some(claim_validators),
            roles: Vec::new(),
        };
        if let Err(error) = Verifier::from_config(config) {
            assert!(error.to_string().len() < 2_000);
        }
    }
});
