//! Claims that decide whether a token counts: times, and whatever the operator wants to equal something.
//!
//! Owns the rules for `exp` and `iat`, and [`ClaimValidators`]. Pure; the caller says what time it is.
//!
//! Spec: PROTOCOL.md §6.1, second table.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use super::{KeyError, Object, TokenError};

pub(super) enum Exp {
    Whole(i64),
    Rounded(i64),
}

/// Times, as the reference validates them.
pub(super) fn validate_times(claims: &Object, now: i64) -> Result<Option<Exp>, TokenError> {
    if let Some(iat) = claims.get("iat")
        && !is_number(iat)
    {
        return Err(TokenError::Invalid);
    }
    let Some(exp) = claims.get("exp") else { return Ok(None) };
    if let Ok(whole) = exp.get().parse::<i64>() {
        if whole <= now {
            return Err(TokenError::Expired { seconds_ago: now.saturating_sub(whole) });
        }
        return Ok(Some(Exp::Whole(whole)));
    }
    if !is_number(exp) {
        return Err(TokenError::Invalid);
    }
    let fractional: f64 = exp.get().parse().map_err(|_| TokenError::Invalid)?;
    // Seconds of any year people live in are exact in an f64.
    #[expect(clippy::cast_precision_loss, reason = "compared with a fraction, exact below 2^53")]
    if fractional <= now as f64 || !fractional.is_finite() {
        return Err(TokenError::Invalid);
    }
    #[expect(clippy::cast_possible_truncation, reason = "float to int casts saturate")]
    Ok(Some(Exp::Rounded(fractional.round() as i64)))
}

fn is_number(raw: &RawValue) -> bool {
    raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

/// What claims must equal where a token has them (`JWT_CLAIM_VALIDATORS`).
#[derive(Clone, Default)]
pub(super) struct ClaimValidators(BTreeMap<String, Value>);

impl ClaimValidators {
    /// An empty text is no validator, as an unset variable is.
    pub(super) fn parse(json: &str) -> Result<Self, KeyError> {
        if json.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut wanted: BTreeMap<String, Value> =
            serde_json::from_str(json).map_err(|_| KeyError::ClaimValidators)?;
        // `exp` is compared with the clock whatever is configured, as in the reference.
        wanted.remove("exp");
        Ok(Self(wanted))
    }

    /// A claim that is absent passes: validators say *which*, not *whether*.
    pub(super) fn check(&self, claims: &Object) -> Result<(), TokenError> {
        let all_equal = self.0.iter().all(|(name, wanted)| {
            let Some(claim) = claims.get(name) else { return true };
            serde_json::from_str::<Value>(claim.get()).is_ok_and(|claim| are_equal(&claim, wanted))
        });
        if all_equal { Ok(()) } else { Err(TokenError::Invalid) }
    }
}

/// Equality of JSON values. Numbers are equal by value, `1` and `1.0` too: the reference compares with `==`.
/// Nothing else is converted: `"1"` is not `1` and `["a"]` is not `"a"`.
fn are_equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            // Only where one is a fraction: two large integers may differ and be the same f64.
            one == other || (one.is_f64() || other.is_f64()) && one.as_f64() == other.as_f64()
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| are_equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| are_equal(one, other)))
        }
        _ => one == other,
    }
}
