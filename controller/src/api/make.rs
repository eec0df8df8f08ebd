//! What comes before a configuration is applied: modules ready to use, and mistakes of files.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::config::answered;
use super::{Said, refuse};
use crate::confcheck;
use crate::config::Findings;
use crate::daemon::Node;
use crate::kinds::{self, Shown, Wish};

/// Files to be checked: a `cluster.xml`, `userconfig.xml` of modules.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Files {
    /// Modules are checked in the cluster of the first `cluster.xml` among them, or in this one.
    files: Vec<TextFile>,
}

/// A file.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TextFile {
    /// What it is called in what is found.
    name: String,
    /// What is in it.
    text: String,
}

/// What was found in a file.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FileFindings {
    /// The file.
    name: String,
    #[serde(flatten)]
    found: Findings,
}

/// The kinds of modules that are ready to use.
#[utoipa::path(get, path = "/api/v1/kinds", responses((status = 200, body = Vec<Shown>)))]
pub(super) async fn kinds() -> Json<Vec<Shown>> {
    Json(kinds::shown())
}

/// Makes a module's configuration of a kind on this node, to be looked at and applied.
#[utoipa::path(
    post,
    path = "/api/v1/modules/{module}/install",
    params(("module" = String, Path, description = "its name")),
    request_body = Wish,
    responses(
        (status = 200, body = Said),
        (status = 400, body = Said),
        (status = 409, body = Said),
        (status = 422, body = Said)
    )
)]
pub(super) async fn install(
    State(node): State<Arc<Node>>,
    Path(module): Path<String>,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Response {
    let wish = match wish {
        Ok(Json(wish)) => wish,
        Err(error) => return refuse(error.status(), error.body_text()),
    };
    let make = move || kinds::make(&node.places, &module, &wish);
    let made = tokio::task::spawn_blocking(make).await;
    answered(made.unwrap_or_else(|error| Err(error.into())))
}

/// Every mistake of files that nobody has applied yet, as `confcheck` tells them.
#[utoipa::path(
    post,
    path = "/api/v1/confcheck",
    request_body = Files,
    responses(
        (status = 200, body = Vec<FileFindings>),
        (status = 400, body = Said),
        (status = 413, body = Said),
        (status = 422, body = Said)
    )
)]
pub(super) async fn confcheck(
    State(node): State<Arc<Node>>,
    files: Result<Json<Files>, JsonRejection>,
) -> Response {
    let files = match files {
        Ok(Json(files)) => files.files,
        Err(error) => return refuse(error.status(), error.body_text()),
    };
    let files: Vec<_> = files.into_iter().map(|f| (f.name, f.text)).collect();
    let check = move || -> Vec<_> {
        let own = node.places.cluster();
        let checked = confcheck::check(&files, &own, |name| std::env::var(name).ok());
        let found = checked.into_iter().map(|checked| FileFindings {
            name: checked.name,
            found: checked.found,
        });
        found.collect()
    };
    match tokio::task::spawn_blocking(check).await {
        Ok(found) => Json(found).into_response(),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
