//! Owns the topic prefix. Knows nothing of channels or permissions; it cannot fail, it only says "not ours".
//!
//! Spec: PROTOCOL.md §2.1.

/// What every channel topic starts with.
pub const PREFIX: &str = "realtime:";

/// The topic of heartbeats. Spec: PROTOCOL.md §1.7.
pub const PHOENIX: &str = "phoenix";

/// The part after the first `realtime:`; `None` if the prefix is missing, `Some("")` for `realtime:` alone
/// (which a join must refuse with `TopicNameRequired`).
pub fn sub_topic(topic: &str) -> Option<&str> {
    topic.strip_prefix(PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_prefix_is_cut() {
        assert_eq!(sub_topic("realtime:room"), Some("room"));
        assert_eq!(sub_topic("realtime:realtime:room"), Some("realtime:room"));
        assert_eq!(sub_topic("realtime:a:b:c"), Some("a:b:c"));
        assert_eq!(sub_topic("realtime:"), Some(""));
        assert_eq!(sub_topic("realtime"), None);
        assert_eq!(sub_topic("phoenix"), None);
        assert_eq!(sub_topic("Realtime:room"), None);
        assert_eq!(sub_topic(""), None);
    }
}
