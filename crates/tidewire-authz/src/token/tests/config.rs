//! What an operator may write: keys, key sets, claim validators.

use super::keys::{JWKS, for_kid, reheaded, roles, set_with, with_jwks};
use super::vectors::{SHORT_MODULUS, TOKENS};
use super::*;

#[test]
fn unusable_keys_are_named_and_not_shown() {
    let key = |index: usize, kid: &str, problem| KeyError::Key { index, kid: Some(kid.into()), problem };
    let outcome = |kid: &str, member: &str, value: &str| {
        let value = if value.is_empty() { serde_json::Value::Null } else { value.into() };
        with_jwks(&set_with(kid, member, value)).unwrap_err()
    };
    let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let big = |bytes: usize| {
        let mut number = vec![0xff; bytes];
        number[0] = 0x80;
        number
    };
    use KeyProblem as P;

    assert_eq!(outcome("rsa-old", "n", SHORT_MODULUS), key(0, "rsa-old", P::ModulusSize { bits: 1024 }));
    let mut of_2047_bits = big(256);
    of_2047_bits[0] = 0x7f;
    assert_eq!(
        outcome("rsa-old", "n", &b64(&of_2047_bits)),
        key(0, "rsa-old", P::ModulusSize { bits: 2047 })
    );
    assert_eq!(outcome("rsa-old", "n", &b64(&big(1025))), key(0, "rsa-old", P::ModulusSize { bits: 8200 }));
    assert_eq!(outcome("rsa-old", "n", "AA"), key(0, "rsa-old", P::ModulusSize { bits: 0 }));
    let mut even = big(256);
    even[255] = 0xfe;
    assert_eq!(outcome("rsa-old", "n", &b64(&even)), key(0, "rsa-old", P::ModulusEven));
    for e in
        [&[][..], &[0], &[1], &[2], &[1, 0, 0], &[2, 0, 0, 0, 1], &[1, 0, 0, 0, 0, 0, 0, 0, 3], &[0xff; 64]]
    {
        let e = if e.is_empty() { "AA==".to_owned() } else { b64(e) };
        assert_eq!(outcome("rsa-new", "e", &e), key(1, "rsa-new", P::Exponent), "{e}");
    }
    assert_eq!(outcome("rsa-new", "e", ""), key(1, "rsa-new", P::Member("e")));
    assert_eq!(outcome("rsa-new", "n", "a+b/"), key(1, "rsa-new", P::Base64("n")));
    assert_eq!(outcome("rsa-new", "kty", ""), key(1, "rsa-new", P::Member("kty")));

    assert_eq!(
        outcome("p256-old", "x", &b64(&[1; 31])),
        key(2, "p256-old", P::CoordinateSize { member: "x", bytes: 31, wanted: 32 })
    );
    // The point at infinity has no coordinates; zeros are no point of any of these curves.
    for (index, kid, size) in [(2, "p256-old", 32), (4, "p384", 48), (5, "p521", 66)] {
        assert_eq!(outcome(kid, "x", &b64(&vec![1; size])), key(index, kid, P::NotOnCurve));
        assert_eq!(outcome(kid, "y", &b64(&vec![0; size])), key(index, kid, P::NotOnCurve));
        assert_eq!(outcome(kid, "x", &b64(&vec![0xff; size])), key(index, kid, P::NotOnCurve));
        assert_eq!(
            outcome(kid, "y", &b64(&vec![1; size + 1])),
            key(index, kid, P::CoordinateSize { member: "y", bytes: size + 1, wanted: size })
        );
    }
    assert_eq!(outcome("p384", "y", ""), key(4, "p384", P::Member("y")));
    assert_eq!(outcome("p384", "crv", ""), key(4, "p384", P::Member("crv")));

    assert_eq!(
        outcome("ed25519-old", "x", "AAAA"),
        key(6, "ed25519-old", P::CoordinateSize { member: "x", bytes: 3, wanted: 32 })
    );
    // Neutral element, its unreduced spelling, and one of order eight with either sign.
    let mut unreduced = [0xff; 32];
    (unreduced[0], unreduced[31]) = (0xee, 0x7f);
    let mut neutral = [0; 32];
    neutral[0] = 1;
    for mut weak in [neutral, unreduced, [0; 32]] {
        assert_eq!(outcome("ed25519-old", "x", &b64(&weak)), key(6, "ed25519-old", P::SmallOrder));
        weak[31] |= 0x80;
        assert_eq!(outcome("ed25519-old", "x", &b64(&weak)), key(6, "ed25519-old", P::SmallOrder));
    }
    for eight in
        ["JuiVj8KyJ7BFw_SJ8u-Y8NXfrAXTxjM5sTgCiG1T_AU", "xxdqcD1N2E-6PAt2DRBnDyogU_osOczGTsf9d5KsA3o"]
    {
        assert_eq!(outcome("ed25519-old", "x", eight), key(6, "ed25519-old", P::SmallOrder));
    }

    let short = outcome("oct-1", "k", &b64(b"canary-secret"));
    assert_eq!(short, key(8, "oct-1", P::SecretSize { bytes: 13 }));
    assert_eq!(
        short.to_string(),
        "key 8 (kid \"oct-1\") of the key set: secret has 13 bytes, at least 32 are needed"
    );
    assert_eq!(outcome("oct-1", "k", ""), key(8, "oct-1", P::Member("k")));
}

#[test]
fn a_key_set_has_a_shape() {
    assert_eq!(with_jwks("{\n  canary").unwrap_err(), KeyError::NotJson { line: 2, column: 3 });
    for shape in ["[]", "{}", "null", r#"{"keys":{}}"#, r#"{"keys":[1]}"#, r#"{"keys":["canary"]}"#] {
        let error = with_jwks(shape).unwrap_err();
        assert_eq!(error, KeyError::NotAKeySet, "{shape}");
        assert!(!error.to_string().contains("canary"));
    }
    for empty in ["", "  \n", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"AKP","kid":"x"}]}"#] {
        assert_eq!(with_jwks(empty).unwrap_err(), KeyError::Nothing, "{empty}");
    }
    let nothing = VerifierConfig { secret: Some(b""), ..VerifierConfig::default() };
    assert_eq!(Verifier::from_config(nothing).unwrap_err(), KeyError::Nothing);
    // An empty key set is still a key set: what it lacks is named.
    let config = VerifierConfig {
        secret: Some(SECRET),
        jwks: Some(r#"{"keys":[]}"#),
        roles: roles(),
        ..VerifierConfig::default()
    };
    let verifier = Verifier::from_config(config).unwrap();
    assert!(verifier.verify(&sign_hs256(SECRET, GOOD), NOW).is_ok());
    assert_eq!(verifier.verify(TOKENS[0].2, NOW), Err(for_kid(TOKENS[0].1)));
}

#[test]
fn keys_that_no_token_can_use_are_set_aside_and_told() {
    let mut set: serde_json::Value = serde_json::from_str(JWKS).unwrap();
    let keys = set["keys"].as_array_mut().unwrap();
    let twin = {
        let mut twin = keys[3].clone();
        twin["kid"] = "p256-old".into();
        twin
    };
    keys.push(twin);
    keys.push(serde_json::json!({ "kty": "RSA", "n": "canary", "e": "AQAB" }));
    keys.push(serde_json::json!({ "kty": "OKP", "crv": "Ed448", "kid": "ed448", "x": "canary" }));
    keys.push(serde_json::json!({ "kty": "EC", "crv": "secp256k1", "kid": "coin\n", "x": "canary" }));
    keys.push(serde_json::json!({ "kty": "AKP", "kid": "post", "pub": "canary" }));
    // The same id in another kind is another key.
    keys.push(serde_json::json!({ "kty": "oct", "kid": "p384", "k": URL_SAFE_NO_PAD.encode(SECRET) }));
    let verifier = with_jwks(&set.to_string()).unwrap();
    assert_eq!(
        verifier.ignored_keys(),
        [
            "key 9 (kid \"p256-old\") of the key set: an earlier key of this type has the same `kid`",
            "key 10 of the key set: it has no `kid`, so no token can name it",
            "key 11 (kid \"ed448\") of the key set: its curve is not supported",
            "key 12 (kid \"coin\\n\") of the key set: its curve is not supported",
            "key 13 (kid \"post\") of the key set: its key type is not supported",
        ]
    );
    for (alg, kid, token) in TOKENS {
        assert!(verifier.verify(token, NOW).is_ok(), "{alg} {kid}");
    }
    assert!(verifier.verify(&with_header(r#"{"alg":"HS256","kid":"p384"}"#, GOOD), NOW).is_ok());
    assert_eq!(verifier.verify(&reheaded(r#"{"alg":"Ed448","kid":"ed448"}"#), NOW), Err(for_kid("ed448")));
    assert_eq!(verifier.verify(&reheaded(r#"{"alg":"EdDSA","kid":"ed448"}"#), NOW), Err(for_kid("ed448")));
}

#[test]
fn leading_zeros_and_padding_of_members_are_forgiven() {
    let set: serde_json::Value = serde_json::from_str(JWKS).unwrap();
    let n = URL_SAFE_NO_PAD.decode(set["keys"][0]["n"].as_str().unwrap()).unwrap();
    let padded = base64::engine::general_purpose::URL_SAFE.encode([&[0], &n[..]].concat());
    let verifier = with_jwks(&set_with("rsa-old", "n", padded.into())).unwrap();
    assert!(verifier.verify(TOKENS[0].2, NOW).is_ok());
}

#[test]
fn validators_look_at_claims_that_are_there() {
    let judge = |validators: &str, claims: &str| {
        let config = VerifierConfig {
            secret: Some(SECRET),
            claim_validators: Some(validators),
            roles: roles(),
            ..VerifierConfig::default()
        };
        let claims = format!(r#"{{"role":"anon","exp":1900000000{claims}}}"#);
        Verifier::from_config(config).unwrap().verify(&sign_hs256(SECRET, &claims), NOW).map(drop)
    };
    let wrong = Err(TokenError::Invalid);
    assert_eq!(judge(r#"{"iss":"https://a"}"#, ""), Ok(()));
    assert_eq!(judge(r#"{"iss":"https://a"}"#, r#","iss":"https://a""#), Ok(()));
    assert_eq!(judge(r#"{"iss":"https://a"}"#, r#","iss":"https:\/\/a""#), Ok(()));
    assert_eq!(judge(r#"{"iss":"https://a"}"#, r#","iss":"https://b""#), wrong);
    assert_eq!(judge(r#"{"iss":"https://a"}"#, r#","iss":null"#), wrong);
    assert_eq!(judge(r#"{"iss":"a","aud":"b"}"#, r#","iss":"a","aud":"c""#), wrong);
    assert_eq!(judge(r#"{"aud":"a"}"#, r#","aud":["a"]"#), wrong);
    assert_eq!(judge(r#"{"aud":["a",{"b":1}]}"#, r#","aud":["a",{"b":1.0}]"#), Ok(()));
    assert_eq!(judge(r#"{"aud":["a","b"]}"#, r#","aud":["a"]"#), wrong);
    assert_eq!(judge(r#"{"o":{"a":1}}"#, r#","o":{"a":1,"b":2}"#), wrong);
    assert_eq!(judge(r#"{"v":1}"#, r#","v":1.0"#), Ok(()));
    assert_eq!(judge(r#"{"v":1}"#, r#","v":"1""#), wrong);
    assert_eq!(judge(r#"{"v":9007199254740993}"#, r#","v":9007199254740992"#), wrong);
    assert_eq!(judge(r#"{"nbf":5}"#, r#","nbf":6"#), wrong);
    assert_eq!(judge(r#"{"v":1}"#, &format!(r#","v":{}1{}"#, "[".repeat(500), "]".repeat(500))), wrong);
    // The clock decides on `exp`, whatever is configured.
    assert_eq!(judge(r#"{"exp":1}"#, ""), Ok(()));
    assert_eq!(judge("", ""), Ok(()));
    // An expired token is told that it is expired; a missing role comes after a wrong claim.
    assert_eq!(
        judge(r#"{"iss":"a"}"#, r#","iss":"b","exp":1"#),
        Err(TokenError::Expired { seconds_ago: NOW - 1 })
    );
    for odd in ["[]", "1", "null", "{", r#""aud""#] {
        let config =
            VerifierConfig { secret: Some(SECRET), claim_validators: Some(odd), ..VerifierConfig::default() };
        assert_eq!(Verifier::from_config(config).unwrap_err(), KeyError::ClaimValidators, "{odd}");
    }
}
