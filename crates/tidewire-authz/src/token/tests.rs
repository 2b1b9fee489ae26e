use proptest::prelude::*;

use super::*;

mod config;
mod keys;
mod vectors;

const SECRET: &[u8] = b"super-secret-jwt-token-with-at-least-32-characters-long";
const NOW: i64 = 1_800_000_000;

fn verifier() -> Verifier {
    Verifier::new(SECRET, vec!["anon".into(), "authenticated".into(), "none".into()])
}

fn verify(token: &str) -> Result<Identity, TokenError> {
    verifier().verify(token, NOW)
}

fn claims(claims_json: &str) -> Result<Identity, TokenError> {
    verify(&sign_hs256(SECRET, claims_json))
}

/// A token with any header, signed with HS256 whatever the header says.
fn with_header(header: &str, claims_json: &str) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims_json));
    let mac = <Hmac<Sha256> as Mac>::new_from_slice(SECRET).unwrap().chain_update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

const GOOD: &str = r#"{"role":"anon","exp":1900000000}"#;

#[test]
fn a_good_token_is_its_role_and_claims() {
    let identity = claims(
        r#"{"sub":"u1","role":"authenticated","exp":1900000000,"iat":1,"big":9007199254740993,"d":1.50}"#,
    );
    let identity = identity.unwrap();
    assert_eq!(identity.role, "authenticated");
    assert_eq!(identity.sub.as_deref(), Some("u1"));
    assert_eq!(identity.exp, 1_900_000_000);
    assert_eq!(
        identity.claims_json,
        r#"{"big":9007199254740993,"d":1.50,"exp":1900000000,"iat":1,"role":"authenticated","sub":"u1"}"#
    );
}

#[test]
fn a_token_made_elsewhere_verifies() {
    // jwt.io's example, whose secret is public; its claims lack role and exp, which is looked at after the signature.
    let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0Ijox\
                 NTE2MjM5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c";
    let verifier = Verifier::new(b"your-256-bit-secret", vec!["anon".into()]);
    assert_eq!(verifier.verify(token, NOW), Err(TokenError::ClaimsMissing));
    assert_eq!(verify(token), Err(TokenError::Signature));
}

#[test]
fn the_order_of_claims_makes_no_other_identity() {
    let one = claims(r#"{"role":"anon","exp":1900000000,"a":1}"#).unwrap();
    let two = claims(r#"{"a":1,"exp":1900000000,"role":"anon"}"#).unwrap();
    assert_eq!(one, two);
}

#[test]
fn the_last_of_two_equal_claims_counts_everywhere() {
    let identity = claims(r#"{"role":"service_role","role":"anon","exp":1900000000}"#).unwrap();
    assert_eq!(identity.role, "anon");
    assert_eq!(
        identity.claims_json,
        GOOD.replace(r#""role":"anon","exp":1900000000"#, r#""exp":1900000000,"role":"anon""#)
    );
}

#[test]
fn percent_encoding_and_white_space_are_removed() {
    let token = sign_hs256(SECRET, GOOD);
    let (head, tail) = token.split_at(20);
    assert!(verify(&format!(" {head}\r\n\t{tail} ")).is_ok());
    assert!(verify(&token.replace('.', "%2E").replace('e', "%65")).is_ok());
    assert!(verify(&format!("%20{token}%0a")).is_ok());
    assert_eq!(verify(&format!("{token}%zz")), Err(TokenError::Malformed));
    assert_eq!(verify(&format!("{token}%ff")), Err(TokenError::Malformed));
    assert_eq!(verify(&format!("{token}%")), Err(TokenError::Malformed));
}

#[test]
fn what_has_not_three_decodable_parts_is_malformed() {
    let good = sign_hs256(SECRET, GOOD);
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    for token in [
        "".to_owned(),
        "..".to_owned(),
        "abc".to_owned(),
        signed.to_owned(),
        format!("{good}.x"),
        format!("{signed}.!!"),
        format!("{}.{}.{signature}", part("[]"), part(GOOD)),
        format!("{}.{}.{signature}", part(r#"{"alg":"HS256"}"#), part("[1]")),
        format!("{}.{}.{signature}", part(r#"{"alg":"HS256"}"#), part("\"text\"")),
        format!("{}.{}.{signature}", part(r#"{"alg":"HS256"}"#), part("{")),
        format!("{}.{}.{signature}", part("nope"), part(GOOD)),
        "sb_publishable_abcdef".to_owned(),
    ] {
        assert_eq!(verify(&token), Err(TokenError::Malformed), "{token}");
    }
}

#[test]
fn a_token_does_not_choose_how_the_secret_is_used() {
    for alg in [
        r#""none""#,
        r#""None""#,
        r#""NONE""#,
        r#""RS256""#,
        r#""ES256""#,
        r#""EdDSA""#,
        r#""hs256""#,
        r#""""#,
        "1",
        "null",
    ] {
        let token = with_header(&format!(r#"{{"alg":{alg}}}"#), GOOD);
        assert_eq!(verify(&token), Err(TokenError::Signer), "{alg}");
        // Without a signature at all.
        let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
        assert_eq!(verify(&unsigned), Err(TokenError::Signer), "{alg}");
    }
    assert_eq!(verify(&with_header("{}", GOOD)), Err(TokenError::Signer));
    // A signature by another algorithm of the same family does not do.
    assert_eq!(verify(&with_header(r#"{"alg":"HS512"}"#, GOOD)), Err(TokenError::Signature));
    assert_eq!(verify(&with_header(r#"{"alg":"HS384"}"#, GOOD)), Err(TokenError::Signature));
    // Whoever writes `crit` wants something that we do not understand, even an empty list of it.
    for crit in [r#"["b64"]"#, r#"["exp"]"#, "[]", "null"] {
        let header = format!(r#"{{"alg":"HS256","crit":{crit},"b64":false}}"#);
        assert_eq!(verify(&with_header(&header, GOOD)), Err(TokenError::Signer), "{crit}");
    }
    // A key id names nothing as long as there is no key set.
    assert!(verify(&with_header(r#"{"alg":"HS256","kid":"../../etc/passwd"}"#, GOOD)).is_ok());
}

#[test]
fn a_header_says_everything_once() {
    for header in [
        r#"{"alg":"HS256","alg":"none"}"#,
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":"HS256","\u0061lg":"none"}"#,
        r#"{"alg":"HS256","kid":"a","kid":"b"}"#,
        r#"{"alg":"HS256","typ":"JWT","typ":"JWT"}"#,
    ] {
        assert_eq!(verify(&with_header(header, GOOD)), Err(TokenError::Malformed), "{header}");
    }
    assert!(verify(&with_header(r#"{"alg":"HS256","x":{"alg":1},"Alg":"none"}"#, GOOD)).is_ok());
}

#[test]
fn a_token_has_a_bounded_length() {
    let sized = |extra: usize| {
        sign_hs256(SECRET, &format!(r#"{{"role":"anon","exp":1900000000,"pad":"{}"}}"#, "x".repeat(extra)))
    };
    let mut pad = 12_000;
    while sized(pad + 1).len() <= MAX_TOKEN_BYTES {
        pad += 1;
    }
    assert!(verify(&sized(pad)).is_ok());
    assert_eq!(verify(&sized(pad + 1)), Err(TokenError::Malformed));
    // What cleaning would remove counts too: the bound is on work, not on meaning.
    let padded = format!("{}{}", sign_hs256(SECRET, GOOD), " ".repeat(MAX_TOKEN_BYTES));
    assert_eq!(verify(&padded), Err(TokenError::Malformed));
}

#[test]
fn longer_hashes_verify() {
    fn sign<M: Mac + hmac::digest::KeyInit>(alg: &str) -> String {
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}"}}"#)),
            URL_SAFE_NO_PAD.encode(GOOD)
        );
        let mac = <M as Mac>::new_from_slice(SECRET).unwrap().chain_update(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    }
    assert!(verify(&sign::<Hmac<Sha384>>("HS384")).is_ok());
    assert!(verify(&sign::<Hmac<Sha512>>("HS512")).is_ok());
}

#[test]
fn every_bit_of_the_signature_counts() {
    let good = sign_hs256(SECRET, GOOD);
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(verify(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(bad))), Err(TokenError::Signature));
    }
    for length in 0..bytes.len() {
        let cut = URL_SAFE_NO_PAD.encode(&bytes[..length]);
        assert_eq!(verify(&format!("{signed}.{cut}")), Err(TokenError::Signature), "{length} bytes");
    }
}

#[test]
fn an_empty_secret_verifies_nothing() {
    let verifier = Verifier::new(b"", vec!["anon".into()]);
    assert_eq!(verifier.verify(&sign_hs256(b"", GOOD), NOW), Err(TokenError::Signer));
}

#[test]
fn times_are_validated_as_the_reference_does() {
    let exp = |exp: &str| claims(&format!(r#"{{"role":"anon","exp":{exp}}}"#)).map(|identity| identity.exp);
    assert_eq!(exp("1800000001"), Ok(1_800_000_001));
    assert_eq!(exp("1800000000"), Err(TokenError::Expired { seconds_ago: 0 }));
    assert_eq!(exp("1799999990"), Err(TokenError::Expired { seconds_ago: 10 }));
    assert_eq!(exp("-9223372036854775808"), Err(TokenError::Expired { seconds_ago: i64::MAX }));
    assert_eq!(exp("1800000000.6"), Ok(1_800_000_001));
    assert_eq!(exp("1800000000.4"), Err(TokenError::ExpirationInvalid));
    assert_eq!(exp("1.8e9"), Err(TokenError::Invalid));
    assert_eq!(exp("1799999999.9"), Err(TokenError::Invalid));
    assert_eq!(exp("1e30"), Ok(i64::MAX));
    assert_eq!(exp("99999999999999999999"), Ok(i64::MAX));
    for wrong in ["\"1900000000\"", "null", "true", "[]", "{}", "1e999"] {
        assert_eq!(exp(wrong), Err(TokenError::Invalid), "{wrong}");
    }
    assert_eq!(claims(r#"{"role":"anon","exp":1900000000,"iat":"x"}"#).map(|_| ()), Err(TokenError::Invalid));
    assert!(
        claims(r#"{"role":"anon","exp":1900000000,"iat":2000000000.5,"nbf":2000000000,"aud":"x","iss":"y"}"#)
            .is_ok()
    );
}

#[test]
fn role_and_expiry_are_required_and_the_role_is_on_the_list() {
    for lacking in [r#"{"role":"anon"}"#, r#"{"exp":1900000000}"#, "{}"] {
        assert_eq!(claims(lacking), Err(TokenError::ClaimsMissing), "{lacking}");
    }
    // An expired token is expired first.
    assert_eq!(claims(r#"{"exp":1}"#), Err(TokenError::Expired { seconds_ago: NOW - 1 }));
    let role = |role: &str| claims(&format!(r#"{{"role":{role},"exp":1900000000}}"#)).unwrap_err();
    assert_eq!(role("\"postgres\""), TokenError::RoleNotAllowed { role: "postgres".into() });
    // On the list, but no role to Postgres.
    assert_eq!(role("\"none\""), TokenError::RoleNotAllowed { role: "none".into() });
    for odd in ["null", "1", "[\"anon\"]", "\"\"", "{\"a\":\"anon\"}"] {
        assert_eq!(role(odd), TokenError::RoleNotAllowed { role: String::new() }, "{odd}");
    }
    assert_eq!(role("\"anon \""), TokenError::RoleNotAllowed { role: "anon ".into() });
}

#[test]
fn each_refusal_has_its_texts() {
    let signer = "Failed to generate JWT signer, check your JWT secret or JWKS configuration";
    let by_kid = r#"Failed to generate JWT signer for key ID (kid) "19de8c2c", check your JWT secret or JWKS configuration"#;
    let fields = "Fields `role` and `exp` are required in JWT";
    let rows = [
        (
            TokenError::Malformed,
            "MalformedJWT: The token provided is not a valid JWT",
            (401, "The token provided is not a valid JWT"),
            "The token provided is not a valid JWT",
        ),
        (TokenError::Signer, &format!("JwtSignerError: {signer}"), (401, signer), ":error_generating_signer"),
        (
            TokenError::SignerForKid { kid: "19de8c2c".into() },
            r#"JwtSignerError: Failed to generate JWT signer for key ID (kid) "19de8c2c", check your JWT secret or JWKS configuration"#,
            (401, by_kid),
            by_kid,
        ),
        (
            TokenError::Signature,
            "JwtSignatureError: Failed to validate JWT signature",
            (401, "Failed to validate JWT signature"),
            ":signature_error",
        ),
        (
            TokenError::Expired { seconds_ago: 12 },
            "InvalidJWTToken: Token has expired 12 seconds ago",
            (401, "Token has expired"),
            "Token has expired 12 seconds ago",
        ),
        (
            TokenError::ExpirationInvalid,
            "InvalidJWTToken: Token expiration time is invalid",
            (401, "Token has expired"),
            "Token expiration time is invalid",
        ),
        (TokenError::ClaimsMissing, &format!("InvalidJWTToken: {fields}"), (401, fields), fields),
        (
            TokenError::RoleNotAllowed { role: "canary".into() },
            "Unauthorized: The role of this token is not allowed",
            (401, "The role of this token is not allowed"),
            "The role of this token is not allowed",
        ),
        (
            TokenError::Invalid,
            "Unknown Error on Channel",
            (500, "Error connecting to Realtime"),
            "Unknown Error on Channel",
        ),
    ];
    for (error, join, connect, push) in rows {
        assert_eq!(error.join_reason(), join);
        assert_eq!(error.connect_answer(), (connect.0, connect.1.to_owned()));
        assert_eq!(error.push_message(), push);
        assert!(!error.to_string().contains("canary"));
        assert!(!error.code().is_empty());
    }
}

#[test]
fn debug_output_shows_no_secret() {
    assert!(!format!("{:?}", verifier()).contains("super-secret"));
}

proptest! {
    #[test]
    fn any_text_is_survived(token in ".*", now: i64) {
        prop_assert!(verifier().verify(&token, now).is_err());
    }

    #[test]
    fn any_parts_are_survived(header: Vec<u8>, payload: Vec<u8>, signature: Vec<u8>, now: i64) {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let token = format!("{}.{}.{}", encode(&header), encode(&payload), encode(&signature));
        prop_assert!(verifier().verify(&token, now).is_err());
    }

    #[test]
    fn any_signed_claims_are_survived(exp in "-?[0-9]{1,25}(\\.[0-9]{1,3})?(e[0-9]{1,4})?", role in ".{0,8}", now: i64) {
        let claims = format!(r#"{{"role":{},"exp":{exp}}}"#, serde_json::to_string(&role).unwrap());
        let outcome = verifier().verify(&sign_hs256(SECRET, &claims), now);
        prop_assert!(!matches!(outcome, Err(TokenError::Signature | TokenError::Signer)));
    }

    #[test]
    fn a_changed_token_does_not_verify(position in 0_usize..100, other in any::<char>()) {
        let good = sign_hs256(SECRET, GOOD);
        let mut chars: Vec<char> = good.chars().collect();
        let position = position % chars.len();
        prop_assume!(chars[position] != other && !other.is_whitespace());
        chars[position] = other;
        prop_assert!(verify(&chars.iter().collect::<String>()).is_err());
    }

    #[test]
    fn what_is_signed_verifies(sub in ".{0,20}", exp in 1_800_000_001_i64..i64::MAX) {
        let claims = format!(r#"{{"role":"anon","exp":{exp},"sub":{}}}"#, serde_json::to_string(&sub).unwrap());
        let identity = verify(&sign_hs256(SECRET, &claims)).unwrap();
        prop_assert_eq!(identity.sub, Some(sub));
        prop_assert_eq!(identity.exp, exp);
    }
}
