//! Which key of a set a token gets, and that each bit of each signature counts.

use super::vectors::{CONFUSED, CUBE_ROOT, TOKENS};
use super::*;

pub(super) const JWKS: &str = include_str!("jwks.json");

pub(super) fn roles() -> Vec<String> {
    vec!["anon".into(), "authenticated".into()]
}

pub(super) fn with_jwks(jwks: &str) -> Result<Verifier, KeyError> {
    Verifier::from_config(VerifierConfig { jwks: Some(jwks), roles: roles(), ..VerifierConfig::default() })
}

/// The key set of the vectors, and a secret that signed none of them.
fn full() -> Verifier {
    let config = VerifierConfig {
        secret: Some(SECRET),
        jwks: Some(JWKS),
        claim_validators: Some(r#"{"aud":"authenticated"}"#),
        roles: roles(),
    };
    Verifier::from_config(config).unwrap()
}

/// The vectors' set with one member of one key replaced (or, with `Value::Null`, removed).
pub(super) fn set_with(kid: &str, member: &str, value: serde_json::Value) -> String {
    let mut set: serde_json::Value = serde_json::from_str(JWKS).unwrap();
    let keys = set["keys"].as_array_mut().unwrap();
    let key = keys.iter_mut().find(|key| key["kid"] == kid).unwrap().as_object_mut().unwrap();
    key.remove(member);
    if !value.is_null() {
        key.insert(member.to_owned(), value);
    }
    set.to_string()
}

pub(super) fn for_kid(kid: &str) -> TokenError {
    TokenError::SignerForKid { kid: kid.to_owned() }
}

fn header_of(token: &str) -> String {
    String::from_utf8(URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap()).unwrap()
}

#[test]
fn tokens_made_elsewhere_verify_with_the_key_they_name() {
    let verifier = full();
    assert!(verifier.ignored_keys().is_empty());
    for (alg, kid, token) in TOKENS {
        let identity = verifier.verify(token, NOW);
        assert_eq!(
            identity.as_ref().map(|identity| identity.role.as_str()),
            Ok("authenticated"),
            "{alg} {kid}"
        );
        assert_eq!(identity.unwrap().sub.as_deref(), Some("u1"));
        assert!(
            header_of(token).contains(alg) && header_of(token).contains(kid),
            "the table tells the truth"
        );
    }
    let algorithms: std::collections::BTreeSet<&str> = TOKENS.iter().map(|(alg, ..)| *alg).collect();
    assert_eq!(algorithms.len(), 11, "every algorithm of the list but Ed448 has a vector");
}

#[test]
fn the_examples_of_the_rfcs_verify() {
    // RFC 7515 A.2, A.3, A.4; RFC 8037 A.4. Their headers have no key id, so the layer below is asked.
    let set = r#"{"keys":[
        {"kid":"a2","kty":"RSA","e":"AQAB","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"},
        {"kid":"a3","kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
        {"kid":"a4","kty":"EC","crv":"P-521","x":"AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk","y":"ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2"},
        {"kid":"8037","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    ]}"#;
    let keys = KeySet::parse(set).unwrap();
    let claims =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rows = [
        (
            "a2",
            "RS256",
            "eyJhbGciOiJSUzI1NiJ9",
            claims,
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
        (
            "a3",
            "ES256",
            "eyJhbGciOiJFUzI1NiJ9",
            claims,
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
        (
            "a4",
            "ES512",
            "eyJhbGciOiJFUzUxMiJ9",
            "UGF5bG9hZA",
            "AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn",
        ),
        (
            "8037",
            "EdDSA",
            "eyJhbGciOiJFZERTQSJ9",
            "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
    ];
    for (kid, alg, header, payload, signature) in rows {
        let key = keys.public(Asymmetric::named(alg).unwrap(), kid).unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        assert!(key.verify_sig(format!("{header}.{payload}").as_bytes(), &signature).is_ok(), "{kid}");
        assert!(key.verify_sig(format!("{header}.{payload}A").as_bytes(), &signature).is_err(), "{kid}");
    }
    // A.1 goes the whole way: it was valid until 1300819380 and lacks a role.
    let a1 = format!(
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{claims}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    );
    let secret = URL_SAFE_NO_PAD
        .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
        .unwrap();
    let verifier = Verifier::new(&secret, roles());
    assert_eq!(verifier.verify(&a1, 1_300_819_379), Err(TokenError::ClaimsMissing));
    assert_eq!(verifier.verify(&a1, 1_300_819_385), Err(TokenError::Expired { seconds_ago: 5 }));
}

#[test]
fn a_retired_key_verifies_nothing_and_the_others_go_on() {
    let mut set: serde_json::Value = serde_json::from_str(JWKS).unwrap();
    set["keys"].as_array_mut().unwrap().retain(|key| !key["kid"].as_str().unwrap().ends_with("-old"));
    let verifier = with_jwks(&set.to_string()).unwrap();
    let mut retired = 0;
    for (alg, kid, token) in TOKENS {
        if kid.ends_with("-old") {
            retired += 1;
            assert_eq!(verifier.verify(token, NOW), Err(for_kid(kid)), "{alg} {kid}");
        } else {
            assert!(verifier.verify(token, NOW).is_ok(), "{alg} {kid}");
        }
    }
    assert_eq!(retired, 5);
}

#[test]
fn another_key_of_the_same_kind_under_the_id_does_not_verify() {
    let set: serde_json::Value = serde_json::from_str(JWKS).unwrap();
    for (old, new) in [("rsa-old", "rsa-new"), ("p256-old", "p256-new"), ("ed25519-old", "ed25519-new")] {
        let mut swapped = set.clone();
        for key in swapped["keys"].as_array_mut().unwrap() {
            let kid = key["kid"].as_str().unwrap().to_owned();
            key["kid"] = if kid == old {
                new.into()
            } else if kid == new {
                old.into()
            } else {
                kid.into()
            };
        }
        let verifier = with_jwks(&swapped.to_string()).unwrap();
        for (alg, kid, token) in TOKENS {
            let expected = if *kid == old || *kid == new { Err(TokenError::Signature) } else { Ok(()) };
            assert_eq!(verifier.verify(token, NOW).map(drop), expected, "{alg} {kid}");
        }
    }
}

#[test]
fn every_bit_of_every_kind_of_signature_counts_and_so_does_its_length() {
    let verifier = full();
    for (alg, kid, token) in TOKENS {
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let judge = |bytes: &[u8]| {
            verifier.verify(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(bytes)), NOW).map(drop)
        };
        assert_eq!(judge(&bytes), Ok(()));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(judge(&bad), Err(TokenError::Signature), "{alg} {kid} bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(judge(&bytes[..length]), Err(TokenError::Signature), "{alg} {kid} {length} bytes");
        }
        assert_eq!(judge(&[&bytes[..], &[0]].concat()), Err(TokenError::Signature), "{alg} {kid} longer");
        assert_eq!(judge(&[&[0], &bytes[..]].concat()), Err(TokenError::Signature), "{alg} {kid} longer");
        assert_eq!(judge(&vec![0; bytes.len()]), Err(TokenError::Signature), "{alg} {kid} zeros");
        assert_eq!(judge(&vec![0xff; bytes.len()]), Err(TokenError::Signature), "{alg} {kid} ones");
    }
}

#[test]
fn every_bit_of_what_is_signed_counts() {
    let verifier = full();
    for (alg, kid, token) in TOKENS {
        let mut parts = token.split('.');
        let (header, claims, signature) =
            (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let claims = URL_SAFE_NO_PAD.decode(claims).unwrap();
        for bit in 0..claims.len() * 8 {
            let mut bad = claims.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let outcome =
                verifier.verify(&format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(bad)), NOW);
            assert!(
                matches!(outcome, Err(TokenError::Signature | TokenError::Malformed)),
                "{alg} {kid} bit {bit}"
            );
        }
    }
}

#[test]
fn a_signature_of_asn1_is_not_one_of_a_token() {
    // r and s of a valid signature, in DER as other formats have them.
    let (_, _, token) = TOKENS.iter().find(|(alg, ..)| *alg == "ES256").unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let integer = |half: &[u8]| {
        let mut number = half.to_vec();
        while number.len() > 1 && number[0] == 0 {
            number.remove(0);
        }
        if number[0] & 0x80 != 0 {
            number.insert(0, 0);
        }
        [&[2, u8::try_from(number.len()).unwrap()], &number[..]].concat()
    };
    let body = [integer(&raw[..32]), integer(&raw[32..])].concat();
    let der = [&[0x30, u8::try_from(body.len()).unwrap()], &body[..]].concat();
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(der));
    assert_eq!(full().verify(&token, NOW), Err(TokenError::Signature));
}

#[test]
fn padding_of_rsa_is_compared_and_not_parsed() {
    assert_eq!(full().verify(CUBE_ROOT, NOW), Err(TokenError::Signature));
}

#[test]
fn a_public_key_is_never_a_secret() {
    // Signed with the PEM of the public key that `kid` names. HS256 looks among the shared secrets only.
    assert_eq!(full().verify(CONFUSED, NOW), Err(TokenError::Signature));
    assert_eq!(with_jwks(JWKS).unwrap().verify(CONFUSED, NOW), Err(for_kid("rsa-new")));
}

/// Any header over the parts of a vector; the signature then belongs to something else.
pub(super) fn reheaded(header: &str) -> String {
    let (_, _, token) = TOKENS[0];
    let mut parts = token.split('.').skip(1);
    format!("{}.{}.{}", URL_SAFE_NO_PAD.encode(header), parts.next().unwrap(), parts.next().unwrap())
}

#[test]
fn the_algorithm_says_in_which_kind_of_key_the_id_is_looked_up() {
    let verifier = full();
    let fits = |alg: &str| match alg {
        "RS256" | "RS384" | "RS512" => &["rsa-old", "rsa-new"][..],
        "ES256" => &["p256-old", "p256-new"],
        "ES384" => &["p384"],
        "ES512" => &["p521"],
        "EdDSA" | "Ed25519" => &["ed25519-old", "ed25519-new"],
        _ => &[],
    };
    let kids = [
        "rsa-old",
        "rsa-new",
        "p256-old",
        "p256-new",
        "p384",
        "p521",
        "ed25519-old",
        "ed25519-new",
        "oct-1",
        "?",
    ];
    for alg in ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448"] {
        for kid in kids {
            let expected = if fits(alg).contains(&kid) { TokenError::Signature } else { for_kid(kid) };
            let token = reheaded(&format!(r#"{{"alg":"{alg}","kid":"{kid}"}}"#));
            assert_eq!(verifier.verify(&token, NOW), Err(expected), "{alg} {kid}");
        }
        // Without a key id, with an odd one, and without a key set there is no key at all.
        for header in [format!(r#"{{"alg":"{alg}"}}"#), format!(r#"{{"alg":"{alg}","kid":1}}"#)] {
            assert_eq!(verifier.verify(&reheaded(&header), NOW), Err(TokenError::Signer), "{header}");
        }
        let token = reheaded(&format!(r#"{{"alg":"{alg}","kid":"rsa-new"}}"#));
        assert_eq!(verify(&token), Err(TokenError::Signer), "{alg} without a key set");
    }
    for alg in ["none", "None", "", "PS256", "ES256K", "RSA1_5", "rs256", "eddsa", "HS1", "ed25519", "ESP256"]
    {
        let token = reheaded(&format!(r#"{{"alg":"{alg}","kid":"rsa-new"}}"#));
        assert_eq!(verifier.verify(&token, NOW), Err(TokenError::Signer), "{alg}");
    }
    let token = reheaded(r#"{"alg":"RS256","kid":"rsa-new","crit":["exp"],"exp":1}"#);
    assert_eq!(verifier.verify(&token, NOW), Err(TokenError::Signer));
}

#[test]
fn a_symmetric_token_gets_the_key_of_the_set_and_else_the_secret_of_the_tenant() {
    let verifier = full();
    // Tokens of Supabase Auth have a key id that is in no set.
    for header in [r#"{"alg":"HS256","kid":"auth"}"#, r#"{"alg":"HS256","kid":7}"#, r#"{"alg":"HS256"}"#] {
        assert!(verifier.verify(&with_header(header, GOOD), NOW).is_ok(), "{header}");
    }
    // Where the set has the key, the secret does not do.
    let token = with_header(r#"{"alg":"HS256","kid":"oct-1"}"#, GOOD);
    assert_eq!(verifier.verify(&token, NOW), Err(TokenError::Signature));
    // Without a secret: the set or nothing.
    let verifier = with_jwks(JWKS).unwrap();
    let (_, _, of_set) = TOKENS.iter().find(|(alg, ..)| *alg == "HS384").unwrap();
    assert!(verifier.verify(of_set, NOW).is_ok());
    let token = with_header(r#"{"alg":"HS256","kid":"auth"}"#, GOOD);
    assert_eq!(verifier.verify(&token, NOW), Err(for_kid("auth")));
    assert_eq!(verifier.verify(&sign_hs256(SECRET, GOOD), NOW), Err(TokenError::Signer));
    assert_eq!(verifier.verify(&sign_hs256(b"", GOOD), NOW), Err(TokenError::Signer));
}

#[test]
fn what_a_key_says_of_its_algorithm_and_use_does_not_count() {
    let (_, _, token) = TOKENS.iter().find(|(alg, kid, _)| (*alg, *kid) == ("RS512", "rsa-new")).unwrap();
    for (member, value) in [("alg", "RS256"), ("alg", "nonsense"), ("use", "enc"), ("d", "cHJpdmF0ZQ")] {
        let verifier = with_jwks(&set_with("rsa-new", member, value.into())).unwrap();
        assert!(verifier.verify(token, NOW).is_ok(), "{member} {value}");
    }
}

#[test]
fn a_key_id_is_shown_bounded_and_escaped() {
    let verifier = full();
    let refusal = |kid: &str| {
        let header = serde_json::json!({ "alg": "RS256", "kid": kid }).to_string();
        verifier.verify(&reheaded(&header), NOW).unwrap_err()
    };
    let sentence = |kid: &str| {
        format!(
            "Failed to generate JWT signer for key ID (kid) {kid}, check your JWT secret or JWKS configuration"
        )
    };
    for (kid, shown) in [
        ("", r#""""#),
        ("a\"b\\c", r#""a\"b\\c""#),
        ("line\nbreak\r\t\0", r#""line\nbreak\r\t\0""#),
        ("\u{1b}[31m\u{202e}\u{7f}\u{85}", r#""\u{1b}[31m\u{202e}\u{7f}\u{85}""#),
        ("schlüssel 鍵", r#""schlüssel 鍵""#),
    ] {
        let error = refusal(kid);
        assert_eq!(error.push_message(), sentence(shown));
        assert_eq!(error.connect_answer(), (401, sentence(shown)));
        assert_eq!(error.join_reason(), format!("JwtSignerError: {}", sentence(shown)));
        assert_eq!(error.to_string(), format!("no key {shown} for the algorithm of the token"));
        assert_eq!(error.code(), "JwtSignerError");
    }
    let exact = "ü".repeat(KID_SHOWN_CHARS);
    assert_eq!(refusal(&exact), for_kid(&exact));
    assert_eq!(refusal(&format!("{exact}x")), for_kid(&format!("{exact}…")));
    let escaped = refusal(&"\u{1}".repeat(2_000)).join_reason();
    assert!(escaped.len() < 1_000, "{} bytes", escaped.len());
}

#[test]
fn debug_output_shows_no_key() {
    let secret = std::str::from_utf8(SECRET).unwrap();
    let config = VerifierConfig { secret: Some(SECRET), jwks: Some(JWKS), ..VerifierConfig::default() };
    let shown = format!("{config:?} {:?}", full());
    assert!(!shown.contains(secret) && !shown.contains("dGhlLXN5") && !shown.contains("kty"), "{shown}");
}

fn alg() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(
        &[
            "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA",
            "Ed25519", "Ed448",
        ][..],
    )
}

fn kid() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(
        &["rsa-old", "rsa-new", "p256-old", "p384", "p521", "ed25519-new", "oct-1", "?"][..],
    )
}

proptest! {
    #[test]
    fn any_signature_of_any_length_is_survived_by_every_algorithm(
        alg in alg(),
        kid in kid(),
        signature in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let header = format!(r#"{{"alg":"{alg}","kid":"{kid}"}}"#);
        let token = format!(
            "{}.{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(GOOD),
            URL_SAFE_NO_PAD.encode(signature)
        );
        let outcome = full().verify(&token, NOW);
        let is_refused = matches!(outcome, Err(TokenError::Signature | TokenError::SignerForKid { .. }));
        prop_assert!(is_refused);
    }

    #[test]
    fn any_bytes_of_signature_size_are_survived(
        at in 0..TOKENS.len(),
        change in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8),
    ) {
        let (signed, signature) = TOKENS[at].2.rsplit_once('.').unwrap();
        let good = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let mut bytes = good.clone();
        for (position, value) in change {
            let position = position % bytes.len();
            bytes[position] = value;
        }
        let outcome = full().verify(&format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&bytes)), NOW).map(drop);
        prop_assert_eq!(outcome, if bytes == good { Ok(()) } else { Err(TokenError::Signature) });
    }

    #[test]
    fn any_key_set_is_survived(
        kty in "(RSA|EC|OKP|oct|x)",
        crv in "(P-256|P-384|P-521|Ed25519|Ed448|x)",
        members in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 5),
        text in ".*",
    ) {
        let member = |at: usize| URL_SAFE_NO_PAD.encode(&members[at]);
        let set = serde_json::json!({ "keys": [{
            "kty": kty, "crv": crv, "kid": text,
            "n": member(0), "e": member(1), "x": member(2), "y": member(3), "k": member(4),
        }] });
        let _ = with_jwks(&set.to_string());
        let _ = with_jwks(&text);
    }
}
