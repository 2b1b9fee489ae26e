//! The members of a tracked object, without those that belong to the server.
//!
//! Owns one scan over JSON text that somebody else has already found valid. It allocates only when something
//! has to be removed, and it never panics: text that is not an object has no members.
//!
//! Spec: PROTOCOL.md §4.4, "client keys `phx_ref`/`phx_ref_prev` are overwritten".

use std::borrow::Cow;

/// The text between the braces, without members named `phx_ref` or `phx_ref_prev`, spelled with escapes or
/// not: a client that parses duplicates keeps the last one, which would be the forged one.
pub(crate) fn without_refs(object: &str) -> Cow<'_, str> {
    let inside =
        object.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).map_or("", str::trim);
    if inside.is_empty() {
        return Cow::Borrowed("");
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut removed = false;
    for member in Members(inside) {
        if is_server_key(member) {
            removed = true;
        } else {
            kept.push(member);
        }
    }
    if removed { Cow::Owned(kept.join(",")) } else { Cow::Borrowed(inside) }
}

/// Top-level members, split at commas outside strings and brackets.
struct Members<'a>(&'a str);

impl<'a> Iterator for Members<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        let mut depth = 0usize;
        let mut bytes = self.0.bytes().enumerate();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    while let Some((_, inner)) = bytes.next() {
                        match inner {
                            b'"' => break,
                            b'\\' => _ = bytes.next(),
                            _ => {}
                        }
                    }
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                b',' if depth == 0 => {
                    let member = self.0[..at].trim();
                    self.0 = &self.0[at + 1..];
                    return Some(member);
                }
                _ => {}
            }
        }
        let member = self.0.trim();
        self.0 = "";
        Some(member)
    }
}

fn is_server_key(member: &str) -> bool {
    let Some(rest) = member.strip_prefix('"') else {
        return false;
    };
    let mut name = String::new();
    let mut chars = rest.chars();
    // The longest name looked for has 12 characters; anything longer is somebody else's.
    while name.len() <= 12 {
        match chars.next() {
            Some('"') => return matches!(name.as_str(), "phx_ref" | "phx_ref_prev"),
            Some('\\') => {
                // Of all escapes only \uXXXX can spell a letter or an underscore.
                let Some(code) = chars.as_str().strip_prefix('u').and_then(|rest| rest.get(..4)) else {
                    return false;
                };
                let Some(c) = u32::from_str_radix(code, 16).ok().and_then(char::from_u32) else {
                    return false;
                };
                name.push(c);
                chars = chars.as_str()[5..].chars();
            }
            Some(c) => name.push(c),
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_keys_are_removed_and_the_rest_is_kept_verbatim() {
        let vectors = [
            ("{}", ""),
            (" { } ", ""),
            (r#"{"name":"Ada"}"#, r#""name":"Ada""#),
            (r#"{ "a" : 1 , "b":[1,{"phx_ref":2}] }"#, r#""a" : 1 , "b":[1,{"phx_ref":2}]"#),
            (r#"{"phx_ref":"x"}"#, ""),
            (r#"{"phx_ref":"x","a":1,"phx_ref_prev":{"b":"},"}}"#, r#""a":1"#),
            (r#"{"a":"\",\"phx_ref\":1","phx_ref" : 2}"#, r#""a":"\",\"phx_ref\":1""#),
            (r#"{"\u0070hx\u005Fref":1,"a":2}"#, r#""a":2"#),
            (r#"{"phx_reference":1}"#, r#""phx_reference":1"#),
            (r#"{"phx_ref_previous":1}"#, r#""phx_ref_previous":1"#),
            (r#"{"phx_re\n":1,"\ud83d\ude00":2}"#, r#""phx_re\n":1,"\ud83d\ude00":2"#),
            ("", ""),
            ("null", ""),
            ("{", ""),
        ];
        for (object, members) in vectors {
            assert_eq!(without_refs(object), members, "{object}");
        }
    }
}
