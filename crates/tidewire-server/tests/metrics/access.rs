//! Who may read the metrics. Spec: PROTOCOL.md §8.1.

use serde_json::json;
use tidewire_server::ServerConfig;
use tidewire_server::config::{MetricsAccess, Secret};
use tidewire_testkit::{TestServer, config, token};

use crate::page::{Page, request};

fn with_secret() -> ServerConfig {
    let mut config = config(None);
    config.metrics.jwt_secret = Some(Secret::new(token::SECRET));
    config
}

#[tokio::test]
async fn without_a_secret_the_path_does_not_exist() {
    let server = TestServer::start_with(config(None)).await;
    for path in ["GET /metrics", "GET /metrics/eu", "GET /realtime/v1/metrics"] {
        let answer = request(server.address(), path, &[], "").await;
        assert_eq!((answer.status, answer.body.as_str()), (404, "Not Found"), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn with_a_secret_a_signed_token_is_needed_and_nothing_else() {
    let server = TestServer::start_with(with_secret()).await;
    let address = server.address();
    let scrape = async |authorization: &str| {
        let header = format!("Authorization: {authorization}");
        // Scrapers name the machine as they know it.
        request(address, "GET /metrics", &["Host: metrics.internal", &header], "").await
    };
    let bare = token::sign(&json!({}));
    let answer = scrape(&format!("Bearer {bare}")).await;
    assert_eq!(answer.status, 200);
    Page::read(&answer.body);
    let future = token::sign(&json!({"exp": token::FAR_AWAY}));
    assert_eq!(scrape(&format!("Bearer {future}")).await.status, 200);

    let expired = token::sign(&json!({"role": "service_role", "exp": 1_000_000_000}));
    let unsigned = "eyJhbGciOiJub25lIn0.e30.";
    for refused in [
        format!("bearer {bare}"),
        format!("BEARER {bare}"),
        format!("Basic {bare}"),
        bare.clone(),
        format!("Bearer {expired}"),
        format!("Bearer {}x", bare),
        format!("Bearer {unsigned}"),
        "Bearer ".to_owned(),
    ] {
        let answer = scrape(&refused).await;
        assert_eq!((answer.status, answer.body.as_str()), (403, ""), "{refused}");
    }
    let anonymous = request(address, "GET /metrics", &[], "").await;
    assert_eq!((anonymous.status, anonymous.body.as_str()), (403, ""));
    server.stop().await;
}

#[tokio::test]
async fn opened_on_loopback_it_answers_to_names_of_this_machine_alone() {
    let mut config = config(None);
    config.metrics.without_secret = MetricsAccess::Loopback;
    let server = TestServer::start_with(config).await;
    Page::of(server.address()).await;
    let foreign = request(server.address(), "GET /metrics", &["Host: rebound.example"], "").await;
    assert_eq!((foreign.status, foreign.body.as_str()), (403, ""));
    server.stop().await;
}

#[tokio::test]
async fn head_answers_as_get_does_and_a_foreign_region_has_no_nodes_here() {
    let mut config = config(None);
    config.metrics.without_secret = MetricsAccess::Loopback;
    config.metrics.region = "eu-north".into();
    let server = TestServer::start_with(config).await;
    let head = request(server.address(), "HEAD /metrics", &[], "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let here = request(server.address(), "GET /metrics/eu-north", &[], "").await;
    Page::read(&here.body);
    assert!(here.body.contains("{region=\"eu-north\","));
    let elsewhere = request(server.address(), "GET /metrics/us-east", &[], "").await;
    assert_eq!((elsewhere.status, elsewhere.body.as_str()), (200, "# EOF\n"));
    server.stop().await;
}

#[test]
fn only_a_loopback_address_can_be_open_and_secrets_are_long() {
    let mut config = config(None);
    config.metrics.without_secret = MetricsAccess::Loopback;
    assert_eq!(config.validate(), Ok(()));
    config.listen = "0.0.0.0:4000".parse().unwrap();
    let problems = config.validate().unwrap_err();
    assert_eq!(problems[0].path, "metrics.without_secret");
    config.metrics.jwt_secret = Some(Secret::new("short"));
    let problems = config.validate().unwrap_err();
    assert_eq!(problems[0].path, "metrics.jwt_secret");
}
