//! PostgreSQL's server programs: found, or else installed (root) or unpacked into the cache (anybody else).
//!
//! Never makes or starts a system cluster. `tidewire-devdb` decides again which programs it uses, with more
//! care; here it only matters whether there are any.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::steps::{Step, say};
use crate::system::{Trouble, cache_dir, has, is_root, output, succeeds};

const OLDEST_MAJOR: u32 = 14;
/// Keeps Debian's packages from making a cluster while ours are installed.
const NO_CLUSTER: &str = "/etc/postgresql-common/createcluster.d/tidewire.conf";
/// Parts of PostgreSQL's dependencies that only a system cluster needs, or only compiled queries.
const NOT_NEEDED: &[&str] = &[
    "libllvm",
    "llvm",
    "postgresql-common",
    "postgresql-client-common",
    "ssl-cert",
    "perl",
    "libjson-",
    "libtypes-",
    "libcommon-",
    "sysstat",
    "adduser",
    "openssl",
    "netbase",
    "readline-common",
    "ucf",
    "sensible-utils",
    "debconf",
    "locales",
    "tzdata",
];

/// Makes sure that there are programs; returns their version.
pub(crate) fn ensure() -> Result<String, Trouble> {
    if let Some(version) = find() {
        return Ok(version);
    }
    if let Some(named) = std::env::var_os("TIDEWIRE_PG_BIN").filter(|named| !named.is_empty()) {
        let message =
            format!("TIDEWIRE_PG_BIN names {}, which holds no working initdb and postgres", named.display());
        return Err(Trouble::new(message, "correct the variable or unset it"));
    }
    if !(has("apt-get") && has("dpkg-deb")) {
        return Err(Trouble::new(
            "PostgreSQL's server programs (initdb, postgres) were not found, and this system has no apt",
            "macOS: brew install postgresql@17; Fedora: dnf install postgresql-server; Arch: pacman -S postgresql; \
             Nix: nix-shell -p postgresql; or set TIDEWIRE_PG_BIN to the folder that holds them. \
             No system cluster has to be made or started",
        ));
    }
    if is_root() {
        install()?
    } else {
        unpack()?
    }
    find().ok_or_else(|| {
        Trouble::new(
            "PostgreSQL's programs still do not work after installing them",
            "look at the messages above; `apt-get install postgresql` by hand may say more",
        )
    })
}

/// The version of the first programs that work.
fn find() -> Option<String> {
    let mut dirs = Vec::new();
    if let Some(named) = std::env::var_os("TIDEWIRE_PG_BIN").filter(|named| !named.is_empty()) {
        return version(Path::new(&named));
    }
    let bins = |parent: &Path| {
        let mut found: Vec<PathBuf> = fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("bin"))
            .collect();
        found.sort();
        found.reverse();
        found
    };
    dirs.extend(bins(Path::new("/usr/lib/postgresql")));
    dirs.extend(bins(Path::new("/Applications/Postgres.app/Contents/Versions")));
    dirs.extend(
        bins(Path::new("/opt/homebrew/opt"))
            .into_iter()
            .filter(|bin| bin.to_string_lossy().contains("postgresql")),
    );
    dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    for unpacked in fs::read_dir(cache_dir().join("postgres")).into_iter().flatten().flatten() {
        if !unpacked.file_name().to_string_lossy().contains(".partial") {
            dirs.extend(bins(&unpacked.path().join("usr/lib/postgresql")));
        }
    }
    dirs.iter().find_map(|dir| version(dir))
}

fn version(dir: &Path) -> Option<String> {
    if !dir.join("initdb").exists() {
        return None;
    }
    let dir = fs::canonicalize(dir.join("initdb")).ok()?.parent()?.to_owned();
    let ask = |program: &str| {
        let mut command = Command::new(dir.join(program));
        if let Some(libraries) = libraries(&dir) {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let output = command.arg("--version").stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    ask("initdb")?;
    let said = ask("postgres")?;
    let version = said.split("(PostgreSQL)").nth(1)?.split_whitespace().next()?.to_owned();
    let major: u32 = version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    (major >= OLDEST_MAJOR).then_some(version)
}

/// The folders named in the file `libraries` of an unpacked installation.
fn libraries(bin: &Path) -> Option<String> {
    let root = bin.ancestors().nth(5)?;
    let named = fs::read_to_string(root.join("libraries")).ok()?;
    let dirs: Vec<String> = named.lines().map(|dir| root.join(dir).to_string_lossy().into_owned()).collect();
    Some(dirs.join(":"))
}

/// As root: the system's packages, without the cluster that they would make.
fn install() -> Result<(), Trouble> {
    let step = Step::begin(
        "installing PostgreSQL's server programs (apt-get install postgresql; no system cluster is made)",
    );
    let guard = NoCluster::new();
    let install = || {
        let mut command = Command::new("apt-get");
        command.args([
            "install",
            "-y",
            "--no-install-recommends",
            "-o",
            "DPkg::Lock::Timeout=120",
            "postgresql",
        ]);
        succeeds(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    // Missing or old package lists are the usual reason for a first failure.
    let is_done = install() || {
        let _ = succeeds(Command::new("apt-get").arg("update"));
        install()
    };
    drop(guard);
    step.end();
    if is_done {
        Ok(())
    } else {
        Err(Trouble::new(
            "apt-get could not install postgresql",
            "check the network and /etc/apt/sources.list",
        ))
    }
}

/// While it lives, Debian's packages make no cluster.
struct NoCluster;

impl NoCluster {
    fn new() -> Self {
        let path = Path::new(NO_CLUSTER);
        let is_written = path.parent().is_some_and(|dir| fs::create_dir_all(dir).is_ok())
            && fs::write(path, "create_main_cluster = false\n").is_ok();
        if !is_written {
            say(&format!(
                "    warning: {NO_CLUSTER} cannot be written; the packages may make a cluster of their own"
            ));
        }
        Self
    }
}

impl Drop for NoCluster {
    fn drop(&mut self) {
        // The administrator's next installation is as it would have been.
        let _ = fs::remove_file(NO_CLUSTER);
    }
}

/// As an ordinary user: the same packages, downloaded and unpacked into the cache folder.
fn unpack() -> Result<(), Trouble> {
    let cache = cache_dir();
    let step = Step::begin(&format!(
        "fetching PostgreSQL's server programs into {} (nothing is installed)",
        cache.display()
    ));
    let failed = |what: &str, error: &std::io::Error| {
        Trouble::new(format!("{what}: {error}"), "set TIDEWIRE_CACHE to a folder that you can write to")
    };
    let mut apt = Apt::new(&cache).map_err(|error| failed("the cache folder cannot be used", &error))?;
    let (major, packages) = match apt.resolve() {
        Some(resolved) => resolved,
        None => {
            // The system's package lists are missing or not for our eyes: fetch our own.
            say("    fetching package lists");
            apt.update();
            apt.resolve().ok_or_else(|| {
                Trouble::new("apt knows no package postgresql", "check the network and /etc/apt/sources.list")
            })?
        }
    };
    say(&format!("    PostgreSQL {major}: {}", packages.join(" ")));
    let partial = cache.join(format!("postgres/{major}.partial-{}", std::process::id()));
    fs::create_dir_all(&partial).map_err(|error| failed("the cache folder cannot be used", &error))?;
    let result = fetch(&mut apt, &packages, &partial).and_then(|()| {
        write_libraries(&partial).map_err(|error| failed("the libraries cannot be listed", &error))?;
        let bin = partial.join(format!("usr/lib/postgresql/{major}/bin"));
        if version(&bin).is_none() {
            return Err(Trouble::new(
                "the unpacked programs do not run",
                format!(
                    "ask an administrator for `apt-get install postgresql`; missing: {}",
                    missing_libraries(&bin)
                ),
            ));
        }
        let place = cache.join("postgres").join(&major);
        let _ = fs::remove_dir_all(&place);
        fs::rename(&partial, &place).map_err(|error| failed("the programs cannot be put in place", &error))
    });
    if result.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    if result.is_ok() {
        // Tens of megabytes of lists and packages that nobody needs again.
        let _ = fs::remove_dir_all(cache.join("apt"));
    }
    step.end();
    result
}

fn fetch(apt: &mut Apt, packages: &[String], into: &Path) -> Result<(), Trouble> {
    if !apt.download(packages) {
        // Lists older than the archive name versions that are gone.
        say("    fetching package lists");
        apt.update();
        if !apt.download(packages) {
            return Err(Trouble::new(
                "the packages could not be downloaded",
                "check the network and run this again",
            ));
        }
    }
    for deb in fs::read_dir(&apt.debs).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if deb.extension().is_some_and(|extension| extension == "deb")
            && !succeeds(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(into))
        {
            return Err(Trouble::new(
                format!("{} cannot be unpacked", deb.display()),
                "check the space on the disk",
            ));
        }
    }
    Ok(())
}

/// Names the folders with shared libraries, so that whoever runs the programs can point the loader there.
fn write_libraries(root: &Path) -> std::io::Result<()> {
    let mut found = Vec::new();
    for parent in ["usr/lib", "lib"] {
        found.extend(fs::read_dir(root.join(parent)).into_iter().flatten().flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            // usr/lib/x86_64-linux-gnu and the like
            name.contains("-linux-").then(|| format!("{parent}/{name}"))
        }));
    }
    fs::write(root.join("libraries"), found.join("\n") + "\n")
}

fn missing_libraries(bin: &Path) -> String {
    let said = ["initdb", "postgres"].iter().filter_map(|program| output("ldd", [bin.join(program)]));
    let missing: Vec<String> = said
        .flat_map(|said| {
            let names = said.lines().filter(|line| line.contains("not found"));
            names.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect::<Vec<_>>()
        })
        .collect();
    if missing.is_empty() { "nothing known".into() } else { missing.join(" ") }
}

/// apt without rights: the system's knowledge of what is installed, our own folders for everything it writes.
struct Apt {
    debs: PathBuf,
    own: PathBuf,
    has_own_lists: bool,
}

impl Apt {
    fn new(cache: &Path) -> std::io::Result<Self> {
        let own = cache.join("apt");
        let debs = own.join("debs");
        let _ = fs::remove_dir_all(&debs);
        for dir in [&debs, &own.join("lists/partial"), &own.join("archives/partial")] {
            fs::create_dir_all(dir)?;
        }
        // Read last, so that it can undo hooks that tidy up folders of the system.
        let conf = format!(
            "Dir::Cache \"{0}\";\nDir::Cache::archives \"{0}/archives\";\nDir::Log \"{0}\";\n\
             Dir::State::status \"/var/lib/dpkg/status\";\nDebug::NoLocking \"1\";\nAPT::Sandbox::User \"\";\n\
             #clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n",
            own.display()
        );
        fs::write(own.join("apt.conf"), conf)?;
        let has_own_lists = fs::read_dir(own.join("lists"))?.flatten().any(|entry| entry.path().is_file());
        Ok(Self { debs, own, has_own_lists })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-qq").arg("-c").arg(self.own.join("apt.conf"));
        if self.has_own_lists {
            command.arg("-o").arg(format!("Dir::State::lists={}", self.own.join("lists").display()));
        }
        command.current_dir(&self.debs).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn update(&mut self) {
        self.has_own_lists = true;
        // One unreachable source among many is no reason to give up; whether it sufficed shows later.
        let _ = succeeds(self.command("apt-get").arg("update"));
    }

    /// The major version that this system offers, and the packages that are missing for it.
    fn resolve(&self) -> Option<(String, Vec<String>)> {
        let said = self.command("apt-cache").args(["depends", "postgresql"]).output().ok()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let major = said.lines().find_map(|line| {
            let name = line.trim().strip_prefix("Depends: postgresql-")?;
            name.bytes().all(|byte| byte.is_ascii_digit()).then(|| name.to_owned())
        })?;
        let mut packages: Vec<String> =
            [format!("postgresql-{major}"), format!("postgresql-client-{major}"), "libpq5".into()].into();
        // A simulated installation lists exactly what this system lacks, libraries included.
        let mut simulate = self.command("apt-get");
        simulate.args(["install", "--simulate", "--no-install-recommends"]).arg(&packages[0]);
        if let Ok(output) = simulate.stderr(Stdio::null()).output() {
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let Some(name) = line.strip_prefix("Inst ").and_then(|rest| rest.split_whitespace().next())
                else {
                    continue;
                };
                let is_needed = !NOT_NEEDED.iter().any(|prefix| name.starts_with(prefix));
                if is_needed && !packages.iter().any(|package| package == name) {
                    packages.push(name.to_owned());
                }
            }
        }
        Some((major, packages))
    }

    fn download(&self, packages: &[String]) -> bool {
        succeeds(self.command("apt-get").arg("download").args(packages))
    }
}
