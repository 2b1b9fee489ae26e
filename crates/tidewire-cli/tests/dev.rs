//! The contract of `tidewire dev --json`, as scripts and test suites rely on it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Generous: two cores may be busy with other tests. The contract's own limits are asserted where they are.
const PATIENCE: Duration = Duration::from_secs(60);

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tidewire-cli-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("the temporary folder is writable");
        Self(path)
    }

    fn data(&self) -> PathBuf {
        self.0.join("data")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn command(data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidewire"));
    command.args(["dev", "--json", "--data-dir"]).arg(data).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A running `tidewire dev`; killed when the test fails.
struct Dev {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    ready: Value,
}

impl Dev {
    fn start(data: &Path, args: &[&str]) -> Self {
        let mut child = command(data, args).spawn().expect("the binary runs");
        // Somebody has to read the log, or the pipe fills.
        let stderr = child.stderr.take().expect("invariant: piped");
        let log = std::thread::spawn(move || std::io::read_to_string(stderr).unwrap_or_default());
        let mut stdout = BufReader::new(child.stdout.take().expect("invariant: piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("standard output is text");
        if line.is_empty() {
            let status = child.wait();
            panic!("ended without a line: {status:?}\n{}", log.join().unwrap_or_default());
        }
        let ready = serde_json::from_str(&line).expect("the line is JSON");
        Self { child, stdout, ready }
    }

    fn text(&self, key: &str) -> &str {
        self.ready[key].as_str().unwrap_or_else(|| panic!("no {key} in {}", self.ready))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn postgres_pid(&self) -> u32 {
        // Written by PostgreSQL itself.
        let found = find(Path::new("/proc"), |cmdline| {
            cmdline.contains("postgres") && cmdline.contains(&format!("\0-p\0{}\0", self.postgres_port()))
        });
        found.expect("PostgreSQL runs")
    }

    fn postgres_port(&self) -> u16 {
        let port = self.text("db_url").rsplit(':').next().and_then(|rest| rest.split('/').next());
        port.and_then(|port| port.parse().ok()).expect("db_url has a port")
    }

    /// Signals, and waits for the end: its status, how long it took, and what else was on standard output.
    fn end(mut self, signal: Signal) -> (ExitStatus, Duration, String) {
        let began = Instant::now();
        kill_process(self.pid(), signal).expect("the process lives");
        let status = self.child.wait().expect("the process is ours");
        let took = began.elapsed();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("standard output is text");
        (status, took, rest)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find(proc: &Path, wanted: impl Fn(&str) -> bool) -> Option<u32> {
    fs::read_dir(proc).ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let cmdline = fs::read(entry.path().join("cmdline")).ok()?;
        wanted(&String::from_utf8_lossy(&cmdline)).then_some(pid)
    })
}

fn is_alive(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|bytes| !bytes.is_empty())
}

fn wait_until(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !fact() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::yield_now();
    }
}

/// Runs to its end: exit code, the line on standard output, the log.
fn fail(mut command: Command) -> (i32, Value, String) {
    let output = command.output().expect("the binary runs");
    let stdout = String::from_utf8(output.stdout).expect("standard output is text");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(stdout.lines().count(), 1, "one line, got {stdout:?}, log {stderr}");
    let line: Value = serde_json::from_str(&stdout).expect("the line is JSON");
    for key in ["code", "message", "advice"] {
        assert!(line["error"][key].as_str().is_some_and(|text| !text.is_empty()), "{line}");
    }
    (output.status.code().expect("it ended by itself"), line["error"].clone(), stderr)
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).expect("a token has three parts");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).expect("base64url")).expect("claims are JSON")
}

fn psql(url: &str, sql: &str) -> String {
    let output = Command::new("psql")
        .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", sql])
        .output()
        .expect("psql is installed with the server");
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn the_line_has_every_field_and_nothing_follows_it() {
    let folder = Folder::new("line");
    let dev = Dev::start(&folder.data(), &["--port", "0"]);
    let mut keys: Vec<&str> = dev.ready.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["anon_key", "db_url", "jwt_secret", "pid", "service_key", "tenant", "url", "ws_url"]);
    let address = dev.text("url").strip_prefix("http://").unwrap();
    assert!(!address.ends_with('/') && address.starts_with("127.0.0.1:"));
    assert_eq!(dev.text("ws_url"), format!("ws://{address}/realtime/v1"));
    assert_eq!(dev.text("tenant"), "realtime-dev");
    assert_eq!(dev.ready["pid"], dev.child.id());
    assert!(dev.text("jwt_secret").len() >= 32);
    TcpStream::connect(address).expect("the server accepts when the line is there");
    assert_eq!(psql(dev.text("db_url"), "show is_superuser"), "on");
    let (status, took, rest) = dev.end(Signal::TERM);
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(rest, "");
}

#[test]
fn the_keys_last_ten_years_and_stay_the_same() {
    let folder = Folder::new("keys");
    let first = Dev::start(&folder.data(), &["--port", "0"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for (key, role) in [("anon_key", "anon"), ("service_key", "service_role")] {
        let claims = claims(first.text(key));
        assert_eq!(claims["role"], role);
        assert_eq!(claims["ref"], "realtime-dev");
        assert!(claims["iss"].is_string());
        assert!(claims["iat"].as_u64().unwrap() <= now + 1);
        let nine_years = 9 * 366 * 86_400;
        assert!(claims["exp"].as_u64().unwrap() > now + nine_years);
    }
    let file = folder.data().join("keys.json");
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    let before = first.ready.clone();
    first.end(Signal::INT);
    let second = Dev::start(&folder.data(), &["--port", "0"]);
    for key in ["anon_key", "service_key", "jwt_secret", "db_url"] {
        assert_eq!(second.ready[key], before[key], "{key}");
    }
}

#[test]
fn ctrl_c_ends_the_server_and_its_postgres_in_order() {
    let folder = Folder::new("end");
    let dev = Dev::start(&folder.data(), &["--port", "0"]);
    let postgres = dev.postgres_pid();
    let address = dev.text("url").trim_start_matches("http://").to_owned();
    let (status, took, _) = dev.end(Signal::INT);
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!is_alive(postgres));
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn after_kill_9_postgres_ends_too_and_the_folder_starts_again_within_five_seconds() {
    let folder = Folder::new("kill");
    let dev = Dev::start(&folder.data(), &["--port", "0"]);
    psql(dev.text("db_url"), "create table kept as select 42 as id");
    let postgres = dev.postgres_pid();
    dev.end(Signal::KILL);
    let began = Instant::now();
    let again = Dev::start(&folder.data(), &["--port", "0"]);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(psql(again.text("db_url"), "select id from kept"), "42");
    assert!(!is_alive(postgres));
    assert!(is_alive(again.postgres_pid()));
}

#[test]
fn kill_9_alone_leaves_no_postgres_behind() {
    let folder = Folder::new("orphan");
    let dev = Dev::start(&folder.data(), &["--port", "0"]);
    let postgres = dev.postgres_pid();
    dev.end(Signal::KILL);
    wait_until("PostgreSQL ends with its parent", || !is_alive(postgres));
}

#[test]
fn a_second_instance_is_told_the_process_and_the_url_of_the_first() {
    let folder = Folder::new("twice");
    let dev = Dev::start(&folder.data(), &["--port", "0"]);
    let (code, error, _) = fail(command(&folder.data(), &["--port", "0"]));
    assert_ne!(code, 0);
    assert_eq!(error["code"], "DataDirInUse");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(&dev.child.id().to_string()), "{message}");
    assert!(message.contains(dev.text("url")), "{message}");
    assert_eq!(psql(dev.text("db_url"), "select 1"), "1");
}

#[test]
fn a_taken_port_is_told_before_anything_is_made() {
    let folder = Folder::new("port");
    let squatter = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = squatter.local_addr().unwrap().port().to_string();
    let (code, error, _) = fail(command(&folder.data(), &["--port", &port]));
    assert_ne!(code, 0);
    assert_eq!(error["code"], "PortInUse");
    assert!(error["message"].as_str().unwrap().contains(&port));
    assert!(error["advice"].as_str().unwrap().contains("--port 0"));
    assert!(!folder.data().join("pg").exists());
}

#[test]
fn missing_programs_are_told_with_what_to_install() {
    let folder = Folder::new("missing");
    let mut command = command(&folder.data(), &["--port", "0"]);
    command.env("TIDEWIRE_PG_BIN", folder.0.join("nothing"));
    let (_, error, _) = fail(command);
    assert_eq!(error["code"], "PostgresMissing");
    assert!(error["advice"].as_str().unwrap().contains("install"));
}

#[test]
fn what_cannot_be_understood_is_told_in_json_too() {
    let folder = Folder::new("usage");
    let (code, error, _) = fail(command(&folder.data(), &["--porridge"]));
    assert_eq!(code, 2);
    assert_eq!(error["code"], "Usage");
    assert!(error["message"].as_str().unwrap().contains("--porridge"));
}

#[test]
fn a_setting_that_does_not_exist_is_refused() {
    let folder = Folder::new("setting");
    let mut command = command(&folder.data(), &["--port", "0"]);
    command.env("TIDEWIRE__LIMITS__PRESENSE_CALLS", "5");
    let (_, error, _) = fail(command);
    assert_eq!(error["code"], "ConfigInvalid");
    assert!(error["message"].as_str().unwrap().contains("presense_calls"));
}

#[test]
fn damaged_keys_are_told_without_showing_them() {
    let folder = Folder::new("damaged");
    fs::create_dir(folder.data()).unwrap();
    fs::write(folder.data().join("keys.json"), "{\"jwt_secret\": \"hunter2\", oops").unwrap();
    let (_, error, log) = fail(command(&folder.data(), &["--port", "0"]));
    assert_eq!(error["code"], "KeysDamaged");
    assert!(!error.to_string().contains("hunter2") && !log.contains("hunter2"));
}

#[test]
fn a_folder_that_cannot_be_made_is_told() {
    let folder = Folder::new("nofolder");
    fs::write(folder.data(), "a file").unwrap();
    let (_, error, _) = fail(command(&folder.data(), &["--port", "0"]));
    assert_eq!(error["code"], "DataDirNotWritable");
}

#[test]
fn the_database_has_the_roles_the_functions_and_an_empty_publication() {
    let folder = Folder::new("objects");
    let dev = Dev::start(&folder.data(), &["--port", "0"]);
    let ask = |sql: &str| psql(dev.text("db_url"), sql);
    let roles = ask(
        "select string_agg(format('%s:%s%s%s%s%s', rolname, rolcanlogin::int, rolinherit::int, rolsuper::int,
           rolbypassrls::int, rolreplication::int), ' ' order by rolname)
         from pg_roles where rolname in
           ('anon', 'authenticated', 'service_role', 'authenticator', 'tidewire_replication')",
    );
    assert_eq!(
        roles,
        "anon:00000 authenticated:00000 authenticator:10000 service_role:00010 tidewire_replication:10001"
    );
    assert_eq!(ask("select count(*) from pg_publication_tables where pubname = 'supabase_realtime'"), "0");
    assert_eq!(
        ask("select string_agg(pubname, ' ' order by pubname) from pg_publication"),
        "supabase_realtime supabase_realtime_messages_publication"
    );
    // Private channels: partitions are there, and a message finds its own.
    assert_eq!(ask("select count(*) from pg_inherits where inhparent = 'realtime.messages'::regclass"), "5");
    assert_eq!(ask("select realtime.send('{}', 'e', 'room'); select count(*) from realtime.messages"), "1");
    assert_eq!(ask("show wal_level"), "logical");
    let uid = "11111111-2222-3333-4444-555555555555";
    let claims = format!("{{\"sub\":\"{uid}\",\"role\":\"authenticated\",\"email\":\"a@b.c\",\"n\":1}}");
    let seen = ask(&format!(
        "begin; set local request.jwt.claims = '{claims}'; set local role authenticated;
         select auth.uid(), auth.role(), auth.email(), auth.jwt() ->> 'n'; commit"
    ));
    assert_eq!(seen, format!("{uid}|authenticated|a@b.c|1"));
    assert_eq!(ask("begin; set local role anon; select auth.uid() is null; commit"), "t");
    // A new table is there for the three roles, as it is at Supabase.
    ask("create table public.t (id int)");
    assert_eq!(ask("begin; set local role anon; select count(*) from public.t; commit"), "0");
}

#[test]
fn the_authenticator_can_become_a_user_and_is_nobody_by_itself() {
    let folder = Folder::new("authenticator");
    let dev = Dev::start(&folder.data(), &["--port", "0"]);
    let keys: Value =
        serde_json::from_str(&fs::read_to_string(folder.data().join("keys.json")).unwrap()).unwrap();
    let login = |user: &str, password: &str| {
        let password = keys[password].as_str().unwrap();
        format!("postgres://{user}:{password}@127.0.0.1:{}/postgres", dev.postgres_port())
    };
    let authenticator = login("authenticator", "authenticator_password");
    psql(dev.text("db_url"), "create table public.t (id int)");
    assert_eq!(psql(&authenticator, "set role anon; select count(*) from public.t"), "0");
    assert_eq!(psql(&authenticator, "select has_table_privilege('public.t', 'select')"), "f");
    let replication = login("tidewire_replication", "replication_password");
    assert_eq!(psql(&replication, "show is_superuser"), "off");
}

#[test]
fn the_demo_table_comes_with_rows_that_anybody_may_change() {
    let folder = Folder::new("demo");
    let dev = Dev::start(&folder.data(), &["--port", "0", "--demo"]);
    let ask = |sql: &str| psql(dev.text("db_url"), sql);
    assert_eq!(
        ask("select tablename from pg_publication_tables where pubname = 'supabase_realtime'"),
        "demo_notes"
    );
    assert_ne!(ask("set role anon; select count(*) from demo_notes"), "0");
    ask("set role anon; insert into demo_notes (body) values ('x'); update demo_notes set done = true;
         delete from demo_notes");
    dev.end(Signal::TERM);
    // Emptied on purpose: a second start does not fill it again.
    let dev = Dev::start(&folder.data(), &["--port", "0", "--demo"]);
    assert_eq!(psql(dev.text("db_url"), "select count(*) from demo_notes"), "0");
}

#[test]
fn new_keys_reach_the_database() {
    let folder = Folder::new("newkeys");
    let dev = Dev::start(&folder.data(), &["--port", "0"]);
    let secret = dev.text("jwt_secret").to_owned();
    dev.end(Signal::TERM);
    fs::remove_file(folder.data().join("keys.json")).unwrap();
    let dev = Dev::start(&folder.data(), &["--port", "0"]);
    assert_ne!(dev.text("jwt_secret"), secret);
    let keys: Value =
        serde_json::from_str(&fs::read_to_string(folder.data().join("keys.json")).unwrap()).unwrap();
    let password = keys["authenticator_password"].as_str().unwrap();
    let url = format!("postgres://authenticator:{password}@127.0.0.1:{}/postgres", dev.postgres_port());
    assert_eq!(psql(&url, "select 1"), "1");
}

#[test]
fn a_postgres_that_ends_by_itself_is_started_again() {
    let folder = Folder::new("again");
    let dev = Dev::start(&folder.data(), &["--port", "0"]);
    let before = dev.postgres_pid();
    let pid = Pid::from_raw(i32::try_from(before).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    wait_until("another PostgreSQL answers", || {
        let mut check = Command::new("psql");
        check.args(["-X", "-q", "-d", dev.text("db_url"), "-c", "select 1"]);
        check.stdout(Stdio::null()).stderr(Stdio::null());
        !is_alive(before) && check.status().is_ok_and(|status| status.success())
    });
}

#[test]
fn a_signal_during_the_start_is_told_and_leaves_nothing_running() {
    let folder = Folder::new("interrupted");
    let child = command(&folder.data(), &["--port", "0"]).spawn().unwrap();
    let is_begun = || {
        let entries = fs::read_dir(folder.data()).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with("pg.tmp-"))
    };
    wait_until("initdb has begun", is_begun);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let line: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    assert_eq!(line["error"]["code"], "Interrupted");
    assert!(!output.status.success());
    let data = folder.data().to_string_lossy().into_owned();
    assert_eq!(
        find(Path::new("/proc"), |cmdline| cmdline.contains("postgres") && cmdline.contains(&data)),
        None
    );
}

#[test]
fn a_token_is_made_with_the_folders_secret() {
    let folder = Folder::new("token");
    let dev = Dev::start(&folder.data(), &["--port", "0"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidewire"));
    command.args(["token", "--sub", "alice", "--expires", "1h", "--data-dir"]).arg(folder.data());
    let output = command.output().unwrap();
    assert!(output.status.success());
    let token = String::from_utf8(output.stdout).unwrap();
    let token = token.trim();
    let claims = claims(token);
    assert_eq!(claims["sub"], "alice");
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3600);
    // The secret is the one that signed the keys.
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let signed =
        tidewire_authz::sign_hs256(dev.text("jwt_secret").as_bytes(), std::str::from_utf8(&payload).unwrap());
    assert_eq!(signed, token);
}
