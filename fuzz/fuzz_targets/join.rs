//! Join payloads, token pushes and bindings: no panic, ids in range, echoes that are JSON.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidewire_protocol::{join, json};

fn check(binding: &join::Binding) {
    assert!((1..1 << 27).contains(&binding.id()));
    let mut echo = Vec::new();
    binding.write_echo(&mut echo);
    assert!(json::is_valid(&echo));
    if let Err(error) = binding.target() {
        assert!(!error.to_string().is_empty());
    }
}

fuzz_target!(|text: &str| {
    if let Ok(payload) = join::parse(text) {
        let _ = payload.token();
        payload.bindings.iter().for_each(check);
    }
    let _ = join::parse_access_token(text);
    if let Some(binding) = join::Binding::parse(text) {
        check(&binding);
    }
    check(&join::legacy_binding(text));
});
