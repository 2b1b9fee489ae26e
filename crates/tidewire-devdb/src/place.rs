//! Where a cluster's files lie, and the folder's lock.
//!
//! ```text
//! <dir>/postgres.lock       held while a cluster runs; its text is the holder's process id
//! <dir>/postgres-password   0600, the superuser's
//! <dir>/postgres-port       chosen once, chosen again when somebody else took it
//! <dir>/postgres.log        and postgres.log.1
//! <dir>/pg/                 the cluster; pg.tmp-… while it is made
//! ```
//!
//! As root the server runs under an account that may be unable to walk to `<dir>` (`/root`, a private
//! temporary folder). Opening our own folder for passing through (0711) is tried first. If a folder above
//! it is closed, the cluster lives in `/var/lib/tidewire/<id>/pg`: `<dir>/postgres-id` names the id, and
//! `/var/lib/tidewire/<id>/owner` names `<dir>`, so that clusters whose folder is gone can be removed.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::DevDbError;
use crate::account::{Account, is_root};
use crate::postmaster;

/// Clusters of root whose data folder the unprivileged account cannot reach.
const SYSTEM_PLACE: &str = "/var/lib/tidewire";
/// A cluster whose data folder vanished together with the folder above it may lie on a disk that is not
/// mounted today. It is removed only after this long without a start.
const ORPHAN_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A folder, locked, with a place for the cluster.
#[derive(Debug)]
pub(crate) struct Place {
    /// The data folder, canonical.
    pub(crate) dir: PathBuf,
    /// The cluster's folder; it need not exist yet.
    pub(crate) data: PathBuf,
    /// Whom the programs run as.
    pub(crate) account: Account,
    /// Held until the cluster is gone.
    _lock: Lock,
}

impl Place {
    /// Makes the folder if necessary, locks it, and decides where the cluster lives.
    pub(crate) fn take(dir: &Path) -> Result<Self, DevDbError> {
        let not_writable = |source| DevDbError::DataDirNotWritable { dir: dir.to_owned(), source };
        let is_new = !dir.exists();
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(not_writable)?;
        let dir = fs::canonicalize(dir).map_err(not_writable)?;
        let is_ours =
            is_new || fs::read_dir(&dir).map_err(not_writable)?.next().is_none() || has_our_files(&dir);
        let lock = lock(&dir)?;
        let account = Account::for_new_cluster();
        let id_file = dir.join("postgres-id");
        if is_root() {
            remove_orphans();
        }
        if let Ok(id) = fs::read_to_string(&id_file) {
            let base = Path::new(SYSTEM_PLACE).join(valid_id(&id).unwrap_or("damaged"));
            let _ = write_private(&base.join("owner"), &owner_text(&dir));
            return Self::existing(dir, base.join("pg"), lock);
        }
        let data = dir.join("pg");
        if data.exists() {
            return Self::existing(dir, data, lock);
        }
        if !account.can_reach(&data) && is_ours && account.can_reach(&dir) {
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).map_err(not_writable)?;
        }
        if account.can_reach(&data) {
            return Ok(Self { dir, data, account, _lock: lock });
        }
        let id = crate::random_hex(8)?;
        let base = Path::new(SYSTEM_PLACE).join(&id);
        let at_base = |source| DevDbError::DataDirNotWritable { dir: base.clone(), source };
        // The order matters to remove_orphans: a folder with an owner always has that owner's id file.
        write_private(&id_file, &id).map_err(not_writable)?;
        // The parent is passed through by the account, the cluster's own folder belongs to it alone.
        DirBuilder::new().recursive(true).mode(0o711).create(SYSTEM_PLACE).map_err(at_base)?;
        DirBuilder::new().mode(0o700).create(&base).map_err(at_base)?;
        account.give(&base).map_err(at_base)?;
        write_private(&base.join("owner"), &owner_text(&dir)).map_err(at_base)?;
        Ok(Self { data: base.join("pg"), dir, account, _lock: lock })
    }

    fn existing(dir: PathBuf, data: PathBuf, lock: Lock) -> Result<Self, DevDbError> {
        let account = match fs::metadata(&data) {
            Ok(metadata) if !is_root() && metadata.uid() != rustix::process::geteuid().as_raw() => {
                let source = std::io::Error::other("the cluster in it belongs to another user");
                return Err(DevDbError::DataDirNotWritable { dir, source });
            }
            Ok(metadata) => Account::for_existing_cluster(&metadata),
            Err(_) => Account::for_new_cluster(),
        };
        if !account.can_reach(&data) && data.starts_with(&dir) && account.can_reach(&dir) {
            let _ = fs::set_permissions(&dir, fs::Permissions::from_mode(0o711));
        }
        if !account.can_reach(&data) {
            let source =
                std::io::Error::other("PostgreSQL's account cannot walk through the folders above it");
            return Err(DevDbError::DataDirNotWritable { dir: data, source });
        }
        Ok(Self { dir, data, account, _lock: lock })
    }

    /// The folder in which the cluster's folder lies.
    pub(crate) fn base(&self) -> &Path {
        self.data.parent().unwrap_or(&self.dir)
    }

    /// Removes what an interrupted `initdb` left.
    pub(crate) fn remove_leftovers(&self) {
        for entry in fs::read_dir(self.base()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with("pg.tmp-") || name.starts_with("pw.tmp-")) {
                let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
            }
        }
    }

    /// Removes everything, as far as it is ours. For temporary clusters.
    pub(crate) fn remove(&self) {
        if self.base() != self.dir {
            let _ = fs::remove_dir_all(self.base());
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn has_our_files(dir: &Path) -> bool {
    ["postgres.lock", "postgres-password", "keys.json", "tidewire.lock"]
        .iter()
        .any(|name| dir.join(name).exists())
}

/// The lock on a data folder.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone is not enough: a process that another thread has just forked holds a copy of the
        // file until it runs its program, and with the copy the lock.
        let _ = self.0.unlock();
    }
}

fn lock(dir: &Path) -> Result<Lock, DevDbError> {
    let path = dir.join("postgres.lock");
    let not_writable = |source| DevDbError::DataDirNotWritable { dir: dir.to_owned(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(not_writable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            return Err(DevDbError::DataDirInUse { dir: dir.to_owned(), pid: holder.trim().parse().ok() });
        }
        Err(TryLockError::Error(source)) => return Err(not_writable(source)),
    }
    file.set_len(0).map_err(not_writable)?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(not_writable)?;
    Ok(Lock(file))
}

/// Writes a file that only its owner may read; it is whole or not there.
pub(crate) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut unfinished = path.to_owned().into_os_string();
    unfinished.push(".tmp");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    fs::rename(&unfinished, path)
}

fn valid_id(text: &str) -> Option<&str> {
    let text = text.trim();
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(text)
}

/// Line 1: the folder. Line 2: the device it lies on.
fn owner_text(dir: &Path) -> String {
    format!("{}\n{}\n", dir.display(), device_of(dir).unwrap_or_default())
}

fn device_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.dev())
}

/// Removes clusters in [`SYSTEM_PLACE`] whose data folder is gone.
fn remove_orphans() {
    for entry in fs::read_dir(SYSTEM_PLACE).into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(valid_id).map(str::to_owned) else { continue };
        let owner_file = entry.path().join("owner");
        // Without an owner it is being made this very moment, or not ours.
        let Ok(owner) = fs::read_to_string(&owner_file) else { continue };
        let mut lines = owner.lines();
        let Some(dir) = lines.next().map(PathBuf::from) else { continue };
        let device = lines.next().and_then(|line| line.parse().ok());
        if fs::read_to_string(dir.join("postgres-id")).is_ok_and(|text| text.trim() == id) {
            continue;
        }
        let parent_is_there =
            dir.parent().is_some_and(|parent| device_of(parent) == device && device.is_some());
        let unused = fs::metadata(&owner_file).and_then(|metadata| metadata.modified()).ok();
        let unused = unused.and_then(|then| SystemTime::now().duration_since(then).ok()).unwrap_or_default();
        if (parent_is_there || unused > ORPHAN_AGE)
            && postmaster::running_in(&entry.path().join("pg")).is_none()
        {
            tracing::info!(folder = %dir.display(), "removing the cluster of a data folder that is gone");
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A new, empty folder for a temporary cluster. Those that killed test runs left behind are removed.
pub(crate) fn temporary_dir() -> Result<PathBuf, DevDbError> {
    const PREFIX: &str = "tidewire-pg-";
    let parent = std::env::temp_dir();
    for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
        let old = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let age = old.and_then(|then| SystemTime::now().duration_since(then).ok()).unwrap_or_default();
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        // Younger ones may be between their first file and their lock.
        if !named || age < Duration::from_secs(600) {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join("postgres.lock")) else { continue };
        if lock.try_lock().is_ok() && postmaster::running_in(&entry.path().join("pg")).is_none() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let dir = parent.join(format!("{PREFIX}{}", crate::random_hex(8)?));
    DirBuilder::new()
        .mode(0o711)
        .create(&dir)
        .map_err(|source| DevDbError::DataDirNotWritable { dir: dir.clone(), source })?;
    Ok(dir)
}
