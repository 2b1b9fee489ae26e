//! Channel tokens: replaced by `access_token` pushes (§6.4), verified again on a timer (§6.3).

use std::sync::Arc;

use tidewire_protocol::join::{self, AccessTokenPush};

use super::{ChangeCommand, ChannelId, Hub, Output, Timer};
use crate::now::Now;

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
                let (id, has_bindings) = (channel.id, channel.has_bindings);
                self.schedule_token_check(now, slot);
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
    pub(super) fn schedule_token_check(&mut self, now: Now, slot: u32) {
        let longest = self.config.token_check_ms;
        let channel = &mut self.channels[slot as usize];
        channel.token_serial = channel.token_serial.wrapping_add(1);
        let expires_ms = u64::try_from(channel.credential.expires_unix_s).unwrap_or(0).saturating_mul(1000);
        let wait = expires_ms.saturating_sub(now.wall_ms).min(longest);
        let timer = Timer::TokenCheck { channel: channel.id, serial: channel.token_serial };
        self.timers.set(now.mono_ms + wait, timer);
    }

    pub(super) fn on_token_timer(&mut self, now: Now, channel: ChannelId, serial: u32) {
        let Some(&slot) = self.channel_slots.get(&channel) else { return };
        let channel = &self.channels[slot as usize];
        if channel.token_serial != serial {
            return;
        }
        let credential = Arc::clone(&channel.credential);
        match self.verifier.verify(&credential.token, now) {
            Ok(_) => self.schedule_token_check(now, slot),
            Err(refusal) => self.shut_down(now, slot, refusal.code, &refusal.push_message),
        }
    }
}
