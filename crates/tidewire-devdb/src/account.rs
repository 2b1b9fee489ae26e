//! Whom PostgreSQL runs as, and which folders that account can reach.
//!
//! PostgreSQL refuses to run as root. As root we therefore give it an unprivileged account (`postgres`,
//! else `nobody`); as anybody else it runs as ourselves. Access is judged by owner, group and mode bits
//! alone: an access-control list that says otherwise only makes us choose the folder of last resort.

use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The account a cluster's programs run under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Account {
    /// Our own; nothing has to be given up.
    Own,
    /// We are root, and give up that right.
    Unprivileged { uid: u32, gid: u32 },
}

impl Account {
    /// The account for a new cluster.
    pub(crate) fn for_new_cluster() -> Self {
        if !is_root() {
            return Self::Own;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        // 65534 is `nobody` wherever the file does not say otherwise.
        let (uid, gid) =
            ids_of(&passwd, "postgres").or_else(|| ids_of(&passwd, "nobody")).unwrap_or((65534, 65534));
        Self::Unprivileged { uid, gid }
    }

    /// The account for a cluster that exists: as root, whoever owns it (it may have been made before
    /// we became root).
    pub(crate) fn for_existing_cluster(metadata: &Metadata) -> Self {
        if is_root() && metadata.uid() != 0 {
            Self::Unprivileged { uid: metadata.uid(), gid: metadata.gid() }
        } else {
            Self::for_new_cluster()
        }
    }

    /// Makes `command` run under this account.
    pub(crate) fn apply(self, command: &mut Command) {
        if let Self::Unprivileged { uid, gid } = self {
            // The standard library drops the supplementary groups of root together with the id.
            command.uid(uid).gid(gid);
        }
    }

    /// Gives a file or folder to this account.
    pub(crate) fn give(self, path: &Path) -> std::io::Result<()> {
        match self {
            Self::Own => Ok(()),
            Self::Unprivileged { uid, gid } => chown(path, Some(uid), Some(gid)),
        }
    }

    /// Whether this account may walk through every folder above `path`.
    pub(crate) fn can_reach(self, path: &Path) -> bool {
        path.ancestors().skip(1).all(|folder| self.can_enter(folder))
    }

    fn can_enter(self, folder: &Path) -> bool {
        let Self::Unprivileged { uid, gid } = self else { return true };
        let Ok(metadata) = fs::metadata(folder) else { return false };
        let mode = metadata.permissions().mode();
        let bit = if metadata.uid() == uid {
            0o100
        } else if metadata.gid() == gid {
            0o010
        } else {
            0o001
        };
        mode & bit != 0
    }
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn ids_of(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid: u32 = fields.nth(1)?.parse().ok()?;
        let gid: u32 = fields.next()?.parse().ok()?;
        (uid != 0).then_some((uid, gid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_from_the_named_line_and_are_never_root() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres:x:110:118:PostgreSQL,,,:/var/lib:/bin/bash\nroot2:x:0:0:::\n";
        assert_eq!(ids_of(passwd, "postgres"), Some((110, 118)));
        assert_eq!(ids_of(passwd, "root2"), None);
        assert_eq!(ids_of(passwd, "nobody"), None);
        assert_eq!(ids_of("postgres:x", "postgres"), None);
    }
}
