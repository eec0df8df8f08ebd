//! Configuring: looked at on both nodes, then applied on both.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use hyper::Method;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Said, refuse, remote};
use crate::config::Mistake;
use crate::daemon::Node;
use crate::versions::{self, Bundle, Version};

/// What one node asks of the other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Ask {
    /// Whether this could be applied.
    Check(Bundle),
    /// Apply it.
    Apply(Bundle),
    /// Whether the module could be taken away.
    Leave,
    /// Take it away.
    Forget,
}

/// What is applied on a node, and what was before.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Applied {
    /// What runs; none: what is edited is run as it is.
    pub(crate) active: Option<Version>,
    /// What is edited now, if it can be read.
    pub(crate) edited: Option<String>,
    /// Numbers of those that are kept.
    pub(crate) kept: Vec<u64>,
}

pub(super) fn answered(result: Result<String>) -> Response {
    match result {
        Ok(text) => (StatusCode::OK, Json(Said { text })).into_response(),
        Err(error) => refuse(StatusCode::CONFLICT, format!("{error:#}")),
    }
}

/// Longest name of a module, in bytes: it becomes a part of paths.
const MAX_NAME: usize = 64;

/// Names become parts of paths and lead nowhere else.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
        bail!("{name:?} is no name of a module: at most {MAX_NAME} letters, digits, _ and -");
    }
    Ok(())
}

/// Does on this node what the other one, or this one's operator, asks.
fn here(node: &Node, module: &str, ask: &Ask) -> Result<String> {
    check_name(module)?;
    let text = match ask {
        Ask::Check(bundle) => {
            let notes = node.check(module, bundle)?;
            let lines = notes.into_iter().map(|note| {
                // It was looked at in another directory than it is edited in.
                let file = versions::FILE.to_owned();
                format!("\n  {} (note)", Mistake { file, ..note })
            });
            lines.collect()
        }
        Ask::Apply(bundle) => {
            let version = node.apply(module, bundle)?;
            format!("version {} ({})", version.number, version.hash)
        }
        Ask::Leave => {
            node.may_forget(module)?;
            String::new()
        }
        Ask::Forget => {
            let aside = node.forget(module)?;
            format!("what was configured is in {}", aside.display())
        }
    };
    Ok(text)
}

async fn on_this(node: &Arc<Node>, module: &str, ask: Ask) -> Result<String> {
    let (node, module) = (node.clone(), module.to_owned());
    let name = node.hub.cluster.node.clone();
    tokio::task::spawn_blocking(move || here(&node, &module, &ask))
        .await?
        .with_context(|| format!("on {name}"))
}

async fn on_the_other(node: &Node, module: &str, ask: &Ask) -> Result<String> {
    let cluster = &node.hub.cluster;
    let path = format!("/api/v1/modules/{module}/apply");
    let body = serde_json::to_vec(ask)?;
    let (status, bytes) = remote::ask(cluster, Method::POST, &path, body.into()).await?;
    let said: Said = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} answered {status}", cluster.peer))?;
    match status.is_success() {
        true => Ok(said.text),
        false => bail!("{}", said.text),
    }
}

/// The other node asks, for its `config` and `deconfig`: whether a configuration could be applied
/// here (`{"check":{...}}`), to apply it (`apply`), whether the module could be taken away
/// (`"leave"`), to take it away (`"forget"`).
#[utoipa::path(
    post,
    path = "/api/v1/modules/{module}/apply",
    params(("module" = String, Path, description = "its name")),
    request_body(content = serde_json::Value, description = "what is asked"),
    responses(
        (status = 200, body = Said),
        (status = 400, body = Said),
        (status = 409, body = Said),
        (status = 422, body = Said)
    )
)]
pub(super) async fn apply(
    State(node): State<Arc<Node>>,
    Path(module): Path<String>,
    ask: Result<Json<Asked>, JsonRejection>,
) -> Response {
    match ask {
        Ok(Json(Asked(ask))) => answered(on_this(&node, &module, ask).await),
        Err(error) => refuse(error.status(), error.body_text()),
    }
}

/// What the other node asks, as a body.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub(super) struct Asked(Ask);

/// What is edited here is checked on both nodes, and applied to both if both can take it.
#[utoipa::path(
    post,
    path = "/api/v1/modules/{module}/config",
    params(("module" = String, Path, description = "its name")),
    responses((status = 200, body = Said), (status = 409, body = Said))
)]
pub(super) async fn config(State(node): State<Arc<Node>>, Path(module): Path<String>) -> Response {
    let configure = async {
        check_name(&module)?;
        let directory = node.places.modules().join(&module);
        let bundle = tokio::task::spawn_blocking(move || Bundle::read(&directory)).await??;
        let notes = on_this(&node, &module, Ask::Check(bundle.clone())).await?;
        on_the_other(&node, &module, &Ask::Check(bundle.clone())).await?;
        on_the_other(&node, &module, &Ask::Apply(bundle.clone())).await?;
        // From here on the two differ until this one has it, too; nothing is started meanwhile.
        let here = on_this(&node, &module, Ask::Apply(bundle)).await;
        here.context("the nodes have different configurations now: repeat this")
            .map(|version| format!("configured on both nodes: {version}{notes}"))
    };
    answered(configure.await)
}

/// The module is taken away from both nodes; the data stay.
#[utoipa::path(
    delete,
    path = "/api/v1/modules/{module}/config",
    params(("module" = String, Path, description = "its name")),
    responses((status = 200, body = Said), (status = 409, body = Said))
)]
pub(super) async fn deconfig(
    State(node): State<Arc<Node>>,
    Path(module): Path<String>,
) -> Response {
    let remove = async {
        on_this(&node, &module, Ask::Leave).await?;
        on_the_other(&node, &module, &Ask::Leave).await?;
        on_the_other(&node, &module, &Ask::Forget).await?;
        on_this(&node, &module, Ask::Forget).await
    };
    answered(remove.await)
}

/// What is applied.
#[utoipa::path(
    get,
    path = "/api/v1/modules/{module}/config",
    params(("module" = String, Path, description = "its name")),
    responses((status = 200, body = Applied), (status = 409, body = Said))
)]
pub(super) async fn confinfo(
    State(node): State<Arc<Node>>,
    Path(module): Path<String>,
) -> Response {
    let look = move || -> Result<Applied> {
        check_name(&module)?;
        let edited = Bundle::read(&node.places.modules().join(&module));
        Ok(Applied {
            active: versions::active(&node.places, &module)?,
            edited: edited.and_then(|bundle| bundle.hash()).ok(),
            kept: versions::kept(&node.places, &module),
        })
    };
    match tokio::task::spawn_blocking(look).await {
        Ok(Ok(applied)) => Json(applied).into_response(),
        Ok(Err(error)) => refuse(StatusCode::CONFLICT, format!("{error:#}")),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
