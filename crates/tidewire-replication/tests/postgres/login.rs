//! Getting in: hosts, sockets and the methods of authentication.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use tidewire_devdb::Cluster;
use tidewire_replication::{Retry, StreamConfig, StreamError, probe};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener};

use crate::support::{Reader, config, config_for, open, published, refused, sql, wait_for};

async fn reads_a_change(cluster: &Cluster, config: &StreamConfig) {
    let mut stream = open(config).await;
    sql(cluster, "drop table if exists t; create table t (id int); insert into t values (1)");
    assert_eq!(Reader::default().changes(&mut stream, 1).await, ["insert t (1)"]);
    stream.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_password_method_and_trust_lets_the_right_one_in() {
    let cluster = published(&[]);
    sql(
        &cluster,
        "create role by_scram login superuser password 'pässwörd';
         create role by_text login superuser password 'text';
         create role by_trust login superuser;
         create role by_ident login superuser;
         set password_encryption = 'md5'; create role by_md5 login superuser password 'five';",
    );
    let hba = sql(&cluster, "show hba_file");
    let rules = fs::read_to_string(&hba).unwrap();
    let ours = "host all by_text all password\nhost all by_trust all trust\nhost all by_md5 all md5\nhost all by_nobody all reject\nhost all by_ident all ident\n";
    fs::write(&hba, format!("{ours}{rules}")).unwrap();
    sql(&cluster, "select pg_reload_conf()");
    wait_for(&cluster, "select count(*) = 1 from pg_hba_file_rules where user_name = '{by_md5}'");
    wait_for(&cluster, "select pg_conf_load_time() > pg_postmaster_start_time()");

    for (user, right) in [("by_scram", "pässwörd"), ("by_text", "text"), ("by_md5", "five"), ("by_trust", "")]
    {
        reads_a_change(&cluster, &config_for(&cluster.url(user, right))).await;
    }
    for user in ["by_scram", "by_text", "by_md5", "by_nobody", "unknown"] {
        let wrong = refused(&config_for(&cluster.url(user, "wrong"))).await;
        assert_eq!(wrong.code(), "DatabaseAuthenticationFailed", "{user} {wrong:?}");
        assert!(!format!("{wrong:?} {wrong}").contains("wrong"), "{wrong:?}");
    }

    let mut without = config(&cluster);
    without.postgres = tokio_postgres::Config::new();
    without.postgres.host("127.0.0.1").port(cluster.port()).user("postgres").dbname("postgres");
    let StreamError::AuthenticationFailed { reason } = refused(&without).await else { panic!() };
    assert_eq!(reason, "the server asks for a password and none is set");
    assert_eq!(probe(&without).await.unwrap_err().code(), "DatabaseAuthenticationFailed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_as_good_as_tcp() {
    let cluster = published(&[]);
    // The cluster listens on TCP only; a socket of our own leads there.
    let folder = std::env::temp_dir().join(format!("tidewire-socket-{}", cluster.port()));
    fs::create_dir(&folder).unwrap();
    let listener = UnixListener::bind(folder.join(".s.PGSQL.5433")).unwrap();
    let port = cluster.port();
    let proxy = tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let mut config = config(&cluster);
    let password = config.postgres.get_password().unwrap().to_vec();
    config.postgres = tokio_postgres::Config::new();
    config.postgres.host_path(&folder).port(5433).user("postgres").password(password).dbname("postgres");
    reads_a_change(&cluster, &config).await;
    proxy.abort();
    fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_host_is_tried_when_one_does_not_answer() {
    let cluster = published(&[]);
    // Bound and released: nobody listens there.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mut config = config(&cluster);
    let password = config.postgres.get_password().unwrap().to_vec();
    config.postgres = tokio_postgres::Config::new();
    config.postgres.user("postgres").password(password).dbname("postgres");
    config.postgres.host("127.0.0.1").port(free);
    let error = refused(&config).await;
    assert_eq!((error.code(), error.retry()), ("DatabaseUnreachable", Retry::Backoff));
    config.postgres.host("127.0.0.1").port(cluster.port());
    reads_a_change(&cluster, &config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_accepts_and_says_nothing_is_given_up() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    let mut config = config_for(&format!("postgres://u:p@127.0.0.1:{port}/d"));
    config.connect_timeout = std::time::Duration::from_millis(50);
    let StreamError::Unreachable { source } = refused(&config).await else { panic!() };
    assert_eq!(source.kind(), std::io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn tls_is_refused_clearly_rather_than_skipped() {
    let config = config_for("postgres://u:p@127.0.0.1:1/d?sslmode=require");
    let error = refused(&config).await;
    assert_eq!((error.code(), error.retry()), ("DatabaseTlsUnsupported", Retry::Never));
}
