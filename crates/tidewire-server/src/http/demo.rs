//! Reading and writing the demonstration's table, as the caller's role and under row-level security.
//!
//! This is not a data API: one table, fixed statements, only with `dev --demo`. It exists because a page
//! cannot speak to Postgres and a live table is no demonstration if nobody can change it.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use axum::{Json, Router};
use serde::Deserialize;
use tidewire_engine::Credential;
use tokio::sync::Mutex;
use tokio_postgres::NoTls;
use tokio_postgres::types::ToSql;

use super::broadcast::bearer;
use super::{App, json_response, now_unix_s};
use crate::config::ServerConfig;

/// The demonstration's own connection, one statement at a time.
pub(crate) struct Demo {
    postgres: tokio_postgres::Config,
    client: Mutex<Option<tokio_postgres::Client>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    body: String,
    #[serde(default)]
    author: String,
    #[serde(default)]
    color: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    body: Option<String>,
    author: Option<String>,
    color: Option<String>,
    done: Option<bool>,
}

const COLUMNS: &str = "id, body, author, color, done, updated_at";

impl Demo {
    pub(super) fn new(config: &ServerConfig) -> Option<Self> {
        config.demo.as_ref()?;
        let url = &config.database.as_ref()?.authenticator_url;
        let mut postgres = crate::changes::parse_url(url.expose()).ok()?;
        postgres.application_name("tidewire_demo").connect_timeout(Duration::from_secs(5));
        Some(Self { postgres, client: Mutex::new(None) })
    }

    /// Runs one statement under the caller's role and claims; its single column is the JSON answered.
    async fn run(
        &self,
        credential: &Credential,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<String>, tokio_postgres::Error> {
        let mut slot = self.client.lock().await;
        let mut client = match slot.take() {
            Some(client) if !client.is_closed() => client,
            _ => {
                let (client, connection) = self.postgres.connect(NoTls).await?;
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "the demonstration's connection ended");
                    }
                });
                client.batch_execute("set statement_timeout = '5s'; set search_path = public").await?;
                client
            }
        };
        let transaction = client.transaction().await?;
        transaction
            .execute(
                "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true)",
                &[&&*credential.role, &&*credential.claims],
            )
            .await?;
        let row = transaction.query_opt(statement, parameters).await?;
        transaction.commit().await?;
        let answer = row.map(|row| row.try_get(0)).transpose()?;
        // Kept only after success: a connection that has seen an error is not trusted again.
        *slot = Some(client);
        Ok(answer)
    }
}

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/demo/notes", get(list).post(insert))
        .route("/demo/notes/{id}", patch(update).delete(remove))
}

async fn list(State(app): State<App>, headers: HeaderMap) -> Response {
    let statement = format!(
        "select coalesce(json_agg(n order by n.id), '[]')::text from (select {COLUMNS} from demo_notes order by id desc limit 200) n"
    );
    answer(&app, &headers, &statement, &[], StatusCode::OK).await
}

async fn insert(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(note) = serde_json::from_slice::<Note>(&body) else { return bad_request() };
    let statement = format!(
        "with n as (insert into demo_notes (body, author, color) values ($1, coalesce(nullif($2, ''), 'somebody'), coalesce(nullif($3, ''), 'sand')) returning {COLUMNS}) select row_to_json(n)::text from n"
    );
    answer(&app, &headers, &statement, &[&note.body, &note.author, &note.color], StatusCode::CREATED).await
}

async fn update(
    State(app): State<App>,
    Path(id): Path<i64>,
    headers: HeaderMap,
    body: Result<Json<Patch>, axum::extract::rejection::JsonRejection>,
) -> Response {
    let Ok(Json(change)) = body else { return bad_request() };
    let statement = format!(
        "with n as (update demo_notes set body = coalesce($2, body), author = coalesce($3, author), color = coalesce($4, color), done = coalesce($5, done) where id = $1 returning {COLUMNS}) select row_to_json(n)::text from n"
    );
    let parameters: [&(dyn ToSql + Sync); 5] =
        [&id, &change.body, &change.author, &change.color, &change.done];
    answer(&app, &headers, &statement, &parameters, StatusCode::OK).await
}

async fn remove(State(app): State<App>, Path(id): Path<i64>, headers: HeaderMap) -> Response {
    let statement = format!(
        "with n as (delete from demo_notes where id = $1 returning {COLUMNS}) select row_to_json(n)::text from n"
    );
    answer(&app, &headers, &statement, &[&id], StatusCode::OK).await
}

fn bad_request() -> Response {
    json_response(
        StatusCode::BAD_REQUEST,
        r#"{"message":"the body is not a note; see the page's source for the form"}"#,
    )
}

async fn answer(
    app: &App,
    headers: &HeaderMap,
    statement: &str,
    parameters: &[&(dyn ToSql + Sync)],
    success: StatusCode,
) -> Response {
    let not_found = || json_response(StatusCode::NOT_FOUND, r#"{"message":"no such note"}"#);
    let Some(demo) = app.demo.as_ref().filter(|_| app.serves_host(headers)) else { return not_found() };
    let Some(credential) = bearer(headers).and_then(|token| app.tokens.check(&token, now_unix_s()).ok())
    else {
        return json_response(
            StatusCode::UNAUTHORIZED,
            r#"{"message":"send the anon key in the header apikey"}"#,
        );
    };
    match demo.run(&credential, statement, parameters).await {
        Ok(Some(json)) => json_response(success, &json),
        Ok(None) => not_found(),
        Err(error) => {
            let refused = error.as_db_error().map(|refusal| refusal.message().to_owned());
            match refused {
                Some(message) => {
                    let body = serde_json::json!({ "message": message }).to_string();
                    json_response(StatusCode::UNPROCESSABLE_ENTITY, &body)
                }
                None => {
                    tracing::warn!(code = "DatabaseUnreachable", "the demonstration cannot reach Postgres");
                    (StatusCode::SERVICE_UNAVAILABLE, "the database cannot be reached").into_response()
                }
            }
        }
    }
}
