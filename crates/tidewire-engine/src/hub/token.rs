//! Channel tokens: replaced by `access_token` pushes (§6.4), verified again on a timer (§6.3).

use std::sync::Arc;

use tidewire_protocol::join::{self, AccessTokenPush};

use super::{ChangeCommand, ChannelId, Credential, Hub, Output, Timer};
use crate::now::Now;
use crate::timers::TimerKey;

/// When a token that is over was found valid (a verifier may allow for clocks that differ), this is the next
/// look at it. Shorter, and a turn could go on for ever.
const GRACE_MS: u64 = 1_000;

impl Hub {
    pub(super) fn on_access_token(&mut self, now: Now, slot: u32, payload: &str) {
        let AccessTokenPush::Token(token) = join::parse_access_token(payload) else { return };
        if token == *self.channels[slot as usize].credential.token {
            return;
        }
        match self.verifier.verify(&token, now) {
            Ok(credential) => {
                let credential = Arc::new(credential);
                let channel = &mut self.channels[slot as usize];
                channel.credential = Arc::clone(&credential);
                let (id, has_bindings, timer) = (channel.id, channel.has_bindings, channel.token_timer);
                self.timers.cancel(timer);
                self.channels[slot as usize].token_timer = self.set_token_timer(now, id, &credential);
                self.recheck_access(slot, true);
                if has_bindings {
                    let command = ChangeCommand::Reauthorize { channel: id, credential };
                    self.outputs.push_back(Output::Change(command));
                }
            }
            Err(refusal) => {
                self.shut_down(now, slot, refusal.code, &refusal.push_message);
            }
        }
    }

    /// At the latest when the token expires, and at least every `token_check_ms`.
    pub(super) fn set_token_timer(
        &mut self,
        now: Now,
        channel: ChannelId,
        credential: &Credential,
    ) -> TimerKey {
        let expires_ms = u64::try_from(credential.expires_unix_s).unwrap_or(0).saturating_mul(1000);
        let left = expires_ms.checked_sub(now.wall_ms).filter(|&left| left > 0).unwrap_or(GRACE_MS);
        let wait = left.min(self.config.token_check_ms.max(1));
        self.timers.set(now.mono_ms.saturating_add(wait), Timer::TokenCheck(channel))
    }

    pub(super) fn on_token_timer(&mut self, now: Now, channel: ChannelId) {
        let Some(&slot) = self.channel_slots.get(&channel) else { return };
        let credential = Arc::clone(&self.channels[slot as usize].credential);
        match self.verifier.verify(&credential.token, now) {
            Ok(_) => {
                self.channels[slot as usize].token_timer = self.set_token_timer(now, channel, &credential);
                self.recheck_access(slot, false);
            }
            Err(refusal) => self.shut_down(now, slot, refusal.code, &refusal.push_message),
        }
    }
}
