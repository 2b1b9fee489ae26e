//! Clusters against the real server programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tidewire_devdb::{Binaries, Cluster, ClusterOptions, DevDbError, Shutdown};

/// A folder that is gone at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let unique = format!("tidewire-devdb-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(unique);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("the temporary folder is writable");
        Self(path)
    }

    fn options(&self) -> ClusterOptions {
        let mut options = ClusterOptions::new(self.0.join("data"));
        options.ephemeral = true;
        options
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn wait_until(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fact() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::yield_now();
    }
}

fn is_alive(pid: u32) -> bool {
    // A zombie has no command line.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|bytes| !bytes.is_empty())
}

#[test]
fn a_temporary_cluster_answers_and_leaves_nothing_behind() {
    let cluster = Cluster::temporary().unwrap();
    assert_eq!(cluster.run_sql("show wal_level").unwrap(), "logical\n");
    assert_eq!(cluster.run_sql("show timezone").unwrap(), "UTC\n");
    assert_eq!(cluster.run_sql("show server_encoding").unwrap(), "UTF8\n");
    assert_eq!(cluster.run_sql("show listen_addresses").unwrap(), "127.0.0.1\n");
    let data = PathBuf::from(cluster.run_sql("show data_directory").unwrap().trim());
    let pid = cluster.pid().unwrap();
    drop(cluster);
    assert!(!data.exists());
    assert!(!is_alive(pid));
}

#[test]
fn the_superuser_needs_the_password() {
    let cluster = Cluster::temporary().unwrap();
    let rules = cluster.run_sql("select distinct auth_method from pg_hba_file_rules").unwrap();
    assert_eq!(rules, "scram-sha-256\n");
    assert!(cluster.superuser_url().starts_with("postgres://postgres:"));
    assert!(cluster.url("a b", "p@:/").contains("a%20b:p%40%3A%2F@127.0.0.1:"));
}

#[test]
fn data_port_and_password_survive_a_second_start() {
    let folder = Folder::new("second");
    let cluster = Cluster::start(folder.options()).unwrap();
    cluster.run_sql("create table kept (id int); insert into kept values (7)").unwrap();
    let (url, port) = (cluster.superuser_url(), cluster.port());
    cluster.run_sql("checkpoint").unwrap();
    cluster.stop();
    let cluster = Cluster::start(folder.options()).unwrap();
    assert_eq!(cluster.run_sql("select id from kept").unwrap(), "7\n");
    assert_eq!((cluster.superuser_url(), cluster.port()), (url, port));
    let password = folder.0.join("data/postgres-password");
    assert_eq!(fs::metadata(password).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_restart_keeps_the_port_and_changes_the_process() {
    for how in [Shutdown::Fast, Shutdown::Immediate] {
        let mut cluster = Cluster::temporary().unwrap();
        let (pid, port) = (cluster.pid().unwrap(), cluster.port());
        cluster.restart(how).unwrap();
        assert_ne!(cluster.pid().unwrap(), pid);
        assert_eq!(cluster.port(), port);
        assert_eq!(cluster.run_sql("select 1").unwrap(), "1\n");
    }
}

#[test]
fn a_halted_cluster_refuses_until_it_is_resumed() {
    let mut cluster = Cluster::temporary().unwrap();
    cluster.halt(Shutdown::Fast);
    assert_eq!(cluster.pid(), None);
    assert_eq!(cluster.run_sql("select 1").unwrap_err().code(), "SqlFailed");
    cluster.resume().unwrap();
    assert_eq!(cluster.run_sql("select 1").unwrap(), "1\n");
}

#[test]
fn settings_of_the_caller_win_over_the_defaults() {
    let settings = vec![
        ("wal_level".to_owned(), "replica".to_owned()),
        ("application_name".to_owned(), "it's \\ quoted".to_owned()),
    ];
    let cluster = Cluster::temporary_with(settings).unwrap();
    assert_eq!(cluster.run_sql("show wal_level").unwrap(), "replica\n");
    let setting = "select reset_val from pg_settings where name = 'application_name'";
    assert_eq!(cluster.run_sql(setting).unwrap(), "psql\n");
    let written = "select setting from pg_file_settings where name = 'application_name' and error is null";
    assert_eq!(cluster.run_sql(written).unwrap(), "it's \\ quoted\n");
}

#[test]
fn a_second_cluster_in_the_same_folder_is_refused_with_the_holders_process() {
    let folder = Folder::new("twice");
    let _cluster = Cluster::start(folder.options()).unwrap();
    match Cluster::start(folder.options()) {
        Err(DevDbError::DataDirInUse { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
        other => panic!("expected DataDirInUse, got {other:?}"),
    }
}

#[test]
fn a_taken_port_is_refused_when_asked_for_and_replaced_when_remembered() {
    let folder = Folder::new("port");
    let cluster = Cluster::start(folder.options()).unwrap();
    let port = cluster.port();
    cluster.stop();
    let squatter = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let asked = Cluster::start(ClusterOptions { port: Some(port), ..folder.options() });
    assert!(matches!(asked, Err(DevDbError::PortInUse { port: taken }) if taken == port), "{asked:?}");
    let cluster = Cluster::start(folder.options()).unwrap();
    assert_ne!(cluster.port(), port);
    drop(squatter);
}

#[test]
fn remains_of_an_interrupted_start_are_removed() {
    let folder = Folder::new("half");
    let data = folder.0.join("data");
    fs::create_dir_all(data.join("pg.tmp-0123/base")).unwrap();
    fs::write(data.join("pw.tmp-0123"), "secret").unwrap();
    let cluster = Cluster::start(folder.options()).unwrap();
    assert_eq!(cluster.run_sql("select 1").unwrap(), "1\n");
    assert!(!data.join("pg.tmp-0123").exists());
    assert!(!data.join("pw.tmp-0123").exists());
}

#[test]
fn a_lock_file_that_names_a_stranger_does_not_stop_the_start() {
    let folder = Folder::new("stale");
    let cluster = Cluster::start(folder.options()).unwrap();
    let data = PathBuf::from(cluster.run_sql("show data_directory").unwrap().trim());
    let port = cluster.port();
    cluster.stop();
    // A live process that is no postgres: a child of ours.
    let mut stranger = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let text = format!("{}\n{}\n1700000000\n{port}\n\n127.0.0.1\n\nready\n", stranger.id(), data.display());
    fs::write(data.join("postmaster.pid"), text).unwrap();
    let cluster = Cluster::start(folder.options()).unwrap();
    assert_eq!(cluster.run_sql("select 1").unwrap(), "1\n");
    assert!(is_alive(stranger.id()));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_lost_password_file_is_replaced() {
    let folder = Folder::new("password");
    let cluster = Cluster::start(folder.options()).unwrap();
    let url = cluster.superuser_url();
    cluster.run_sql("checkpoint").unwrap();
    cluster.stop();
    fs::remove_file(folder.0.join("data/postgres-password")).unwrap();
    let cluster = Cluster::start(folder.options()).unwrap();
    assert_ne!(cluster.superuser_url(), url);
    assert_eq!(cluster.run_sql("select 1").unwrap(), "1\n");
}

#[test]
fn a_cluster_of_another_version_is_named() {
    let folder = Folder::new("version");
    let cluster = Cluster::start(folder.options()).unwrap();
    let data = PathBuf::from(cluster.run_sql("show data_directory").unwrap().trim());
    cluster.stop();
    fs::write(data.join("PG_VERSION"), "9\n").unwrap();
    match Cluster::start(folder.options()) {
        Err(DevDbError::DataDirOtherVersion { found, .. }) => assert_eq!(found, "9"),
        other => panic!("expected DataDirOtherVersion, got {other:?}"),
    }
}

#[test]
fn a_folder_that_is_no_cluster_is_left_alone() {
    let folder = Folder::new("foreign");
    let foreign = folder.0.join("data/pg");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "important").unwrap();
    let error = Cluster::start(folder.options()).unwrap_err();
    assert_eq!(error.code(), "DataDirDamaged");
    assert!(error.advice().contains("pg"));
    assert!(foreign.join("thesis.txt").exists());
}

#[test]
fn a_bad_setting_fails_with_the_servers_own_words() {
    let folder = Folder::new("setting");
    let mut options = folder.options();
    options.settings.push(("max_connections".into(), "many".into()));
    match Cluster::start(options) {
        Err(DevDbError::StartFailed { log_tail }) => {
            assert!(log_tail.contains("max_connections"), "{log_tail}")
        }
        other => panic!("expected StartFailed, got {other:?}"),
    }
}

#[test]
fn a_file_in_the_folders_place_is_not_writable() {
    let folder = Folder::new("file");
    fs::write(folder.0.join("data"), "a file").unwrap();
    assert_eq!(Cluster::start(folder.options()).unwrap_err().code(), "DataDirNotWritable");
}

#[test]
fn a_killed_server_is_noticed_and_can_be_resumed() {
    let mut cluster = Cluster::temporary().unwrap();
    cluster.run_sql("create table kept as select 1 as id").unwrap();
    let pid = i32::try_from(cluster.pid().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait_until("the death of the server is noticed", || cluster.pid().is_none());
    cluster.resume().unwrap();
    assert_eq!(cluster.run_sql("select id from kept").unwrap(), "1\n");
}

/// The account that root gives PostgreSQL cannot walk to this folder, so the cluster lies elsewhere; it is
/// removed by the next start after its data folder is gone.
#[test]
fn behind_a_closed_folder_the_cluster_of_root_lives_elsewhere_and_is_removed_with_its_folder() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root gives up an account");
        return;
    }
    let folder = Folder::new("closed");
    fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o700)).unwrap();
    let cluster = Cluster::start(folder.options()).unwrap();
    let data = PathBuf::from(cluster.run_sql("show data_directory").unwrap().trim());
    assert!(!data.starts_with(&folder.0), "{}", data.display());
    cluster.run_sql("create table kept as select 5 as id; checkpoint").unwrap();
    cluster.stop();
    let cluster = Cluster::start(folder.options()).unwrap();
    assert_eq!(cluster.run_sql("select id from kept").unwrap(), "5\n");
    cluster.stop();
    fs::remove_dir_all(folder.0.join("data")).unwrap();
    let other = Folder::new("open");
    let _cluster = Cluster::start(other.options()).unwrap();
    assert!(!data.exists());
}

#[test]
fn our_own_closed_folder_is_opened_for_passing_through() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root gives up an account");
        return;
    }
    let folder = Folder::new("own");
    let options = folder.options();
    fs::create_dir(&options.dir).unwrap();
    fs::set_permissions(&options.dir, fs::Permissions::from_mode(0o700)).unwrap();
    let cluster = Cluster::start(options.clone()).unwrap();
    let data = cluster.run_sql("show data_directory").unwrap();
    assert!(Path::new(data.trim()).starts_with(fs::canonicalize(&options.dir).unwrap()));
    assert_eq!(fs::metadata(&options.dir).unwrap().permissions().mode() & 0o777, 0o711);
}

#[test]
fn the_programs_found_are_complete_and_new_enough() {
    let binaries = Binaries::find(&[PathBuf::from("/nonexistent")]).unwrap();
    assert!(binaries.dir.join("postgres").is_file());
    assert!(binaries.major().parse::<u32>().unwrap() >= 14, "{}", binaries.version);
}
