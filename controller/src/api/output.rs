//! The application log of a module: what its scripts, and what they have started, have printed.

use std::io::ErrorKind;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Said, find, refuse};
use crate::daemon::Node;
use crate::scripts::output;

/// A part of the application log, at most 256 KiB of it, and where to go on.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Output {
    /// What it says.
    pub(crate) text: String,
    /// What to ask for next with `file`: each run of the module has a file of its own.
    pub(crate) file: u64,
    /// What to ask for next with `from`.
    pub(crate) end: u64,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub(super) struct OutputQuery {
    /// So many of the last lines of a run; all that fit if it is left out.
    lines: Option<usize>,
    /// Which run: 0 the present one, 1 the one before.
    #[serde(default)]
    run: usize,
    /// Instead of the last lines what is behind byte `from` of this file.
    file: Option<u64>,
    /// The byte.
    #[serde(default)]
    from: u64,
}

/// What the application has printed.
#[utoipa::path(
    get,
    path = "/api/v1/modules/{module}/application",
    params(("module" = String, Path, description = "its name"), OutputQuery),
    responses((status = 200, body = Output), (status = 404, body = Said))
)]
pub(super) async fn application(
    State(node): State<Arc<Node>>,
    Path(module): Path<String>,
    Query(query): Query<OutputQuery>,
) -> Response {
    let logs = match find(&node, &module) {
        Ok(handle) => handle.logs,
        Err(refused) => return refused.into_response(),
    };
    let run = query.run;
    let read = tokio::task::spawn_blocking(move || match query.file {
        Some(file) => output::behind(&logs, file, query.from),
        None => output::last(&logs, run, query.lines.unwrap_or(usize::MAX)),
    });
    match read.await {
        Ok(Ok(part)) => Json(Output {
            text: part.text,
            file: part.file,
            end: part.end,
        })
        .into_response(),
        Ok(Err(e)) if e.kind() == ErrorKind::NotFound => {
            let text = format!("the output of run {run} before this one is not kept");
            refuse(StatusCode::NOT_FOUND, text)
        }
        Ok(Err(e)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
        Err(e) => refuse(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}
