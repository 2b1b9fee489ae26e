//! Whether a snapshot sees a transaction that the replication stream has named.
//!
//! Pure. The stream names transactions by 32 bits, a snapshot by 64; the missing half is the epoch nearest to the
//! snapshot, because Postgres never lets two live transaction ids be further apart than 2^31.

/// Does `snapshot` (text form of `pg_current_snapshot()`, `xmin:xmax:xip,…`) see the committed transaction `xid`?
///
/// `None`: the text is not a snapshot. Only ids of top-level transactions make sense; the caller knows that `xid` has
/// committed, so "not in progress any more" is "visible". Spec: PostgreSQL manual, §9.27.9.
pub(super) fn sees(snapshot: &str, xid: u32) -> Option<bool> {
    let mut parts = snapshot.splitn(3, ':');
    let xmin: u64 = parts.next()?.parse().ok()?;
    let xmax: u64 = parts.next()?.parse().ok()?;
    let in_progress = parts.next()?;
    let full = nearest(xid, xmax);
    if full < xmin {
        return Some(true);
    }
    if full >= xmax {
        return Some(false);
    }
    for running in in_progress.split(',').filter(|text| !text.is_empty()) {
        if running.parse::<u64>().ok()? == full {
            return Some(false);
        }
    }
    Some(true)
}

/// The 64-bit id with these low bits that is nearest to `reference`, never below zero.
fn nearest(xid: u32, reference: u64) -> u64 {
    const EPOCH: u64 = 1 << 32;
    const HALF: u64 = 1 << 31;
    let candidate = (reference & !(EPOCH - 1)) | u64::from(xid);
    if candidate > reference.saturating_add(HALF) && candidate >= EPOCH {
        candidate - EPOCH
    } else if candidate.saturating_add(HALF) < reference {
        candidate.saturating_add(EPOCH)
    } else {
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_transaction_is_seen_and_a_running_or_future_one_is_not() {
        assert_eq!(sees("10:20:12,15", 9), Some(true));
        assert_eq!(sees("10:20:12,15", 10), Some(true));
        assert_eq!(sees("10:20:12,15", 12), Some(false));
        assert_eq!(sees("10:20:12,15", 13), Some(true));
        assert_eq!(sees("10:20:12,15", 15), Some(false));
        assert_eq!(sees("10:20:12,15", 20), Some(false));
        assert_eq!(sees("10:20:12,15", 21), Some(false));
        assert_eq!(sees("10:10:", 9), Some(true));
        assert_eq!(sees("10:10:", 10), Some(false));
    }

    #[test]
    fn epochs_are_completed_around_the_snapshot() {
        let epoch = 1_u64 << 32;
        // Just after a wrap: 0xffff_fff0 is of the epoch before, 5 of this one.
        let after = format!("{}:{}:{}", epoch + 3, epoch + 10, epoch + 4);
        assert_eq!(sees(&after, 0xffff_fff0), Some(true));
        assert_eq!(sees(&after, 4), Some(false));
        assert_eq!(sees(&after, 5), Some(true));
        assert_eq!(sees(&after, 10), Some(false));
        // Just before a wrap: 5 is of the epoch to come.
        let before = format!("{}:{}:", epoch * 3 - 10, epoch * 3 - 5);
        assert_eq!(sees(&before, 5), Some(false));
        assert_eq!(sees(&before, 0xffff_fff0), Some(true));
        assert_eq!(sees(&before, 0xffff_fffb), Some(false));
        // A transaction running across the wrap.
        let across = format!("{}:{}:{}", epoch - 2, epoch + 3, epoch - 2);
        assert_eq!(sees(&across, 0xffff_fffe), Some(false));
        assert_eq!(sees(&across, 0xffff_ffff), Some(true));
    }

    #[test]
    fn what_is_not_a_snapshot_answers_nothing() {
        for text in ["", "1", "1:2", "a:2:", "1:b:", "1:20:x"] {
            assert_eq!(sees(text, 7), None, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn the_completed_id_keeps_its_low_bits_and_is_near(xid: u32, reference in 0_u64..(1 << 40)) {
            let full = nearest(xid, reference);
            proptest::prop_assert_eq!(full & 0xffff_ffff, u64::from(xid));
            // In epoch zero there is nothing below, so only the upper side is bounded there.
            if reference >= 1 << 32 {
                proptest::prop_assert!(full.abs_diff(reference) <= 1 << 31);
            }
        }

        #[test]
        fn any_text_is_survived(text in ".*", xid: u32) {
            let _ = sees(&text, xid);
        }
    }
}
