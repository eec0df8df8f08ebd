//! The local API: HTTP over a Unix socket, JSON, for root and the daemon's own user.
//!
//! | | |
//! |---|---|
//! | `GET /api/v1/state` | the node, its networks, all modules |
//! | `GET /api/v1/modules/{module}` | one module |
//! | `POST /api/v1/modules/{module}/command` | `{"command":"start"}` |
//! | `POST /api/v1/modules/{module}/resource` | `{"resource":"custom.x","state":"down"}` |
//! | `GET /api/v1/modules/{module}/log?from=0&most=300` | events behind a byte of the log |
//! | `GET /api/v1/modules/{module}/application?run=0&lines=300` | what its application printed; goes on with `file` and `from` |
//! | `GET`, `POST`, `DELETE /api/v1/modules/{module}/config` | what is applied; apply what is edited to both nodes; take the module away from both |
//! | `POST /api/v1/modules/{module}/apply` | a configuration, from the other node |
//! | `POST /api/v1/modules/{module}/install` | makes a module of a kind, to be looked at and applied |
//! | `GET /api/v1/kinds` | which kinds there are |
//! | `POST /api/v1/confcheck` | the mistakes of files that nobody has applied yet |
//! | `GET /api/v1/snapshot` | state, configuration and logs in a zip archive |
//! | `GET /api/v1/metrics` | figures for Prometheus |
//! | `GET /api/v1/openapi.json` | this, for programs |
//! | `/api/v1/nodes/{node}/...` | the same of the other node |

pub(crate) mod client;
mod config;
mod make;
mod metrics;
mod output;
mod progress;
pub(crate) mod remote;
mod snapshot;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use utoipa::{OpenApi, ToSchema};

pub(crate) use config::{Applied, check_name};
pub(crate) use output::Output;
pub(crate) use progress::{Progress, Resync};
pub(crate) use snapshot::Snapshot;

use crate::config::ResourceState;
use crate::daemon::Node;
use crate::runner::events::{self, EventLine};
use crate::runner::{Command, Handle, Input, ModuleState};

/// Longest request, in bytes.
const MAX_BODY: usize = 64 << 10;

/// Longest configuration on its way, in bytes: base64 and JSON are longer than what is in it.
const MAX_CONFIGURATION: usize = crate::versions::MAX_BYTES * 2;

/// Events in one answer, at most.
const MAX_EVENTS: usize = 2000;

/// How long a module may take to say what it makes of a command.
const ANSWER: Duration = Duration::from_secs(10);

/// The node and all its modules.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct NodeState {
    /// This node.
    pub(crate) node: String,
    /// Its peer.
    pub(crate) peer: String,
    /// What the peer's `cluster.xml` says differently, and what is to be done.
    #[serde(default)]
    pub(crate) trouble: Option<String>,
    /// The networks between them.
    pub(crate) networks: Vec<NetworkState>,
    /// The modules.
    pub(crate) modules: Vec<ModuleState>,
    /// Modules that cannot be run.
    pub(crate) broken: Vec<Broken>,
}

/// A network between the nodes.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct NetworkState {
    /// Its name in `cluster.xml`.
    pub(crate) name: String,
    /// Heartbeats arrive.
    pub(crate) up: bool,
    /// Milliseconds since the last one.
    pub(crate) quiet_ms: u64,
    /// Heartbeats, and what else was heard over it, since the daemon's start.
    #[serde(default)]
    pub(crate) heard: u64,
    /// What is wrong.
    pub(crate) trouble: Option<String>,
}

/// A module that cannot be run.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Broken {
    /// Its name.
    pub(crate) module: String,
    /// Why.
    pub(crate) reason: String,
}

/// A command.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct CommandRequest {
    /// Which.
    pub(crate) command: Command,
}

/// The state of a resource.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ResourceRequest {
    /// Its name, as class.id.
    pub(crate) resource: String,
    /// What it is.
    pub(crate) state: ResourceState,
}

/// What follows from a command, or why it was refused.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Said {
    /// In words.
    pub(crate) text: String,
}

/// Events, and where to go on.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Events {
    /// Oldest first.
    pub(crate) events: Vec<EventLine>,
    /// What to ask for next with `from`.
    pub(crate) end: u64,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
struct LogQuery {
    /// A byte of the log.
    #[serde(default)]
    from: u64,
    /// So many, at most.
    most: Option<usize>,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "twinfold", description = "The local API of a node's daemon."),
    paths(
        state,
        module,
        command,
        resource,
        log,
        output::application,
        config::config,
        config::deconfig,
        config::confinfo,
        config::apply,
        make::kinds,
        make::install,
        make::confcheck,
        metrics::metrics,
        snapshot::snapshot,
        description,
        remote::pass_on
    )
)]
struct Description;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
struct Caller {
    user: Option<u32>,
    /// The other node.
    peer: bool,
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Caller {
        Caller {
            user: stream.io().peer_cred().ok().map(|c| c.uid()),
            peer: false,
        }
    }
}

/// What is not done, and why.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(Said { text: self.1 })).into_response()
    }
}

fn refuse(status: StatusCode, text: impl Into<String>) -> Response {
    Refusal(status, text.into()).into_response()
}

/// Only root, and the user the daemon runs as, whatever the socket's permissions are.
async fn only_owner(
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let own = rustix::process::geteuid().as_raw();
    match caller.user {
        Some(user) if user == 0 || user == own => next.run(request).await,
        None if caller.peer => next.run(request).await,
        _ => refuse(StatusCode::FORBIDDEN, "only root may use this"),
    }
}

/// The node and all its modules.
#[utoipa::path(get, path = "/api/v1/state", responses((status = 200, body = NodeState)))]
async fn state(State(node): State<Arc<Node>>) -> Json<NodeState> {
    let mut state = node_state(&node);
    progress::complete(&node, &mut state.modules).await;
    Json(state)
}

fn node_state(node: &Node) -> NodeState {
    let networks = node.hub.networks();
    let modules = node.modules();
    NodeState {
        node: node.hub.cluster.node.clone(),
        peer: node.hub.cluster.peer.clone(),
        trouble: node.hub.differs().as_deref().map(str::to_owned),
        networks: networks
            .into_iter()
            .map(|n| NetworkState {
                up: n.up,
                name: n.name,
                quiet_ms: n.quiet_ms,
                heard: n.words,
                trouble: n.trouble,
            })
            .collect(),
        modules: modules.running.values().map(shown).collect(),
        broken: modules
            .broken
            .iter()
            .map(|(module, reason)| Broken {
                module: module.clone(),
                reason: reason.clone(),
            })
            .collect(),
    }
}

pub(crate) fn shown(handle: &Handle) -> ModuleState {
    let shown = handle.shown.lock();
    shown.unwrap_or_else(PoisonError::into_inner).clone()
}

fn find(node: &Node, module: &str) -> Result<Handle, Refusal> {
    let modules = node.modules();
    let found = modules.running.get(module).cloned();
    found.ok_or_else(|| match modules.broken.get(module) {
        Some(reason) => Refusal(StatusCode::CONFLICT, reason.clone()),
        None => Refusal(
            StatusCode::NOT_FOUND,
            format!("there is no module {module:?}"),
        ),
    })
}

/// One module.
#[utoipa::path(
    get,
    path = "/api/v1/modules/{module}",
    params(("module" = String, Path, description = "its name")),
    responses((status = 200, body = ModuleState), (status = 404, body = Said))
)]
async fn module(
    State(node): State<Arc<Node>>,
    axum::extract::Path(module): axum::extract::Path<String>,
) -> Response {
    match find(&node, &module) {
        Ok(handle) => {
            let mut module = [shown(&handle)];
            progress::complete(&node, &mut module).await;
            let [module] = module;
            Json(module).into_response()
        }
        Err(refused) => refused.into_response(),
    }
}

/// Commands a module; what follows is seen in its state.
#[utoipa::path(
    post,
    path = "/api/v1/modules/{module}/command",
    params(("module" = String, Path, description = "its name")),
    request_body = CommandRequest,
    responses(
        (status = 202, body = Said),
        (status = 400, body = Said),
        (status = 404, body = Said),
        (status = 409, body = Said)
    )
)]
async fn command(
    State(node): State<Arc<Node>>,
    axum::extract::Path(module): axum::extract::Path<String>,
    request: Result<Json<CommandRequest>, JsonRejection>,
) -> Response {
    let request = match request {
        Ok(Json(request)) => request,
        Err(error) => return refuse(error.status(), error.body_text()),
    };
    let handle = match find(&node, &module) {
        Ok(handle) => handle,
        Err(refused) => return refused.into_response(),
    };
    ask(handle, move |answer| {
        Input::Command(request.command, answer)
    })
    .await
}

/// Says what state a resource is in.
#[utoipa::path(
    post,
    path = "/api/v1/modules/{module}/resource",
    params(("module" = String, Path, description = "its name")),
    request_body = ResourceRequest,
    responses(
        (status = 202, body = Said),
        (status = 400, body = Said),
        (status = 404, body = Said),
        (status = 409, body = Said)
    )
)]
async fn resource(
    State(node): State<Arc<Node>>,
    axum::extract::Path(module): axum::extract::Path<String>,
    request: Result<Json<ResourceRequest>, JsonRejection>,
) -> Response {
    let request = match request {
        Ok(Json(request)) => request,
        Err(error) => return refuse(error.status(), error.body_text()),
    };
    let handle = match find(&node, &module) {
        Ok(handle) => handle.clone(),
        Err(refused) => return refused.into_response(),
    };
    let ResourceRequest { resource, state } = request;
    ask(handle, move |answer| Input::Set(resource, state, answer)).await
}

/// Gives a module something to answer.
async fn ask(
    handle: Handle,
    input: impl FnOnce(Sender<Result<String, String>>) -> Input + Send + 'static,
) -> Response {
    let asked = tokio::task::spawn_blocking(move || {
        let (answer, answered) = channel();
        handle.inbox.send(input(answer)).ok()?;
        answered.recv_timeout(ANSWER).ok()
    });
    match asked.await {
        Ok(Some(Ok(text))) => (StatusCode::ACCEPTED, Json(Said { text })).into_response(),
        Ok(Some(Err(text))) => refuse(StatusCode::CONFLICT, text),
        _ => refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the module does not answer",
        ),
    }
}

/// Events of a module.
#[utoipa::path(
    get,
    path = "/api/v1/modules/{module}/log",
    params(("module" = String, Path, description = "its name"), LogQuery),
    responses((status = 200, body = Events), (status = 404, body = Said))
)]
async fn log(
    State(node): State<Arc<Node>>,
    axum::extract::Path(module): axum::extract::Path<String>,
    Query(query): Query<LogQuery>,
) -> Response {
    let logs = match find(&node, &module) {
        Ok(handle) => handle.logs,
        Err(refused) => return refused.into_response(),
    };
    let most = query.most.unwrap_or(MAX_EVENTS).min(MAX_EVENTS);
    let read = tokio::task::spawn_blocking(move || events::read(&logs, query.from, most));
    match read.await {
        Ok(Ok((events, end))) => Json(Events { events, end }).into_response(),
        Ok(Err(e)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
        Err(e) => refuse(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

/// This description.
#[utoipa::path(
    get,
    path = "/api/v1/openapi.json",
    responses((status = 200, body = serde_json::Value))
)]
async fn description() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}

/// A way to ask for something.
type Route = (Method, &'static str, MethodRouter<Arc<Node>>);

/// All that is served, with what serves it. The description has each of them: a test asks a daemon.
fn routes() -> Vec<Route> {
    const CONFIG: &str = "/api/v1/modules/{module}/config";
    const OTHER: &str = "/api/v1/nodes/{node}/{*rest}";
    let apply = post(config::apply).layer(DefaultBodyLimit::max(MAX_CONFIGURATION));
    let confcheck = post(make::confcheck).layer(DefaultBodyLimit::max(MAX_CONFIGURATION));
    vec![
        (Method::GET, "/api/v1/state", get(state)),
        (Method::GET, "/api/v1/modules/{module}", get(module)),
        (
            Method::POST,
            "/api/v1/modules/{module}/command",
            post(command),
        ),
        (
            Method::POST,
            "/api/v1/modules/{module}/resource",
            post(resource),
        ),
        (Method::GET, "/api/v1/modules/{module}/log", get(log)),
        (
            Method::GET,
            "/api/v1/modules/{module}/application",
            get(output::application),
        ),
        (Method::GET, CONFIG, get(config::confinfo)),
        (Method::POST, CONFIG, post(config::config)),
        (Method::DELETE, CONFIG, delete(config::deconfig)),
        (Method::POST, "/api/v1/modules/{module}/apply", apply),
        (
            Method::POST,
            "/api/v1/modules/{module}/install",
            post(make::install),
        ),
        (Method::GET, "/api/v1/kinds", get(make::kinds)),
        (Method::POST, "/api/v1/confcheck", confcheck),
        (Method::GET, "/api/v1/snapshot", get(snapshot::snapshot)),
        (Method::GET, "/api/v1/metrics", get(metrics::metrics)),
        (Method::GET, "/api/v1/openapi.json", get(description)),
        (Method::GET, OTHER, get(remote::pass_on)),
        (Method::POST, OTHER, post(remote::pass_on)),
        (Method::DELETE, OTHER, delete(remote::pass_on)),
    ]
}

/// What a daemon serves: methods and paths, as its description has to name them.
pub fn served() -> Vec<(String, String)> {
    routes()
        .into_iter()
        .map(|(method, path, _)| (method.to_string(), path.replace("{*", "{")))
        .collect()
}

fn router(node: Arc<Node>) -> Router {
    let add = |router: Router<Arc<Node>>, (_, path, how): Route| router.route(path, how);
    routes()
        .into_iter()
        .fold(Router::new(), add)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(only_owner))
        .with_state(node)
}

/// The socket; it is removed when dropped.
#[derive(Debug)]
pub(crate) struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Serves the API on a thread of its own.
pub(crate) fn serve(path: &Path, node: Arc<Node>) -> Result<Socket> {
    // This node's only daemon is this one, so a socket that is there is a leftover.
    let _ = std::fs::remove_file(path);
    let listener = std::os::unix::net::UnixListener::bind(path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    let serve = async move {
        let listener = UnixListener::from_std(listener)?;
        match remote::listen(&node.hub.cluster) {
            Ok(from_peer) => {
                let service = router(node.clone()).into_make_service_with_connect_info::<Caller>();
                tokio::spawn(async move { axum::serve(from_peer, service).await });
            }
            Err(error) => tracing::error!(%error, "commands of the other node are not served"),
        }
        let service = router(node).into_make_service_with_connect_info::<Caller>();
        axum::serve(listener, service).await
    };
    std::thread::Builder::new()
        .name("api".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            if let Err(error) = runtime.and_then(|runtime| runtime.block_on(serve)) {
                tracing::error!(%error, "the API is not served any more");
            }
        })
        .context("cannot start the API's thread")?;
    Ok(Socket(path.to_owned()))
}
