//! What somebody needs who looks for a mistake from afar: how the node stands, what is
//! configured, what happened. Keys, scripts and the values of variables are not in it.

use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::{NodeState, node_state, refuse};
use crate::config;
use crate::daemon::Node;
use crate::versions;

/// Bytes of one log that are in it, at most: its end.
const MAX_LOG: u64 = 1 << 20;

/// What stands for a value that may be a secret.
const HIDDEN: &str = "(not shown)";

/// A snapshot of a node.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Snapshot {
    /// The node.
    pub(crate) node: String,
    /// A zip archive, in base64.
    pub(crate) zip: String,
}

struct Archive(ZipWriter<Cursor<Vec<u8>>>);

impl Archive {
    fn add(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.0.start_file(name, SimpleFileOptions::default())?;
        Ok(self.0.write_all(bytes)?)
    }
}

/// The end of a log.
fn tail(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))?;
    let mut bytes = Vec::new();
    file.take(MAX_LOG).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a module runs with, as it was understood.
fn understood(directory: &Path) -> Result<Vec<u8>> {
    let file = directory.join(versions::FILE);
    let text = config::text(&file)?;
    let shown = file.display().to_string();
    let (module, found) = config::module(&shown, &text, |name| std::env::var(name).ok());
    let mut module = module.with_context(|| crate::cluster::mistakes(&shown, &found))?;
    for (_, value) in &mut module.variables {
        HIDDEN.clone_into(value);
    }
    Ok(serde_json::to_vec_pretty(&module)?)
}

fn take(node: &Node, state: &NodeState) -> Result<Snapshot> {
    let mut archive = Archive(ZipWriter::new(Cursor::new(Vec::new())));
    archive.add("state.json", &serde_json::to_vec_pretty(state)?)?;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let versions = format!(
        "twinfold {}\n{}{}",
        env!("CARGO_PKG_VERSION"),
        read("/proc/version"),
        read("/etc/os-release")
    );
    archive.add("versions.txt", versions.as_bytes())?;
    let cluster = std::fs::read(node.places.cluster()).unwrap_or_default();
    archive.add("cluster.xml", &cluster)?;
    let names = state.modules.iter().map(|m| &m.module);
    for module in names.chain(state.broken.iter().map(|b| &b.module)) {
        let (_, directory) = versions::directory(&node.places, module)?;
        // What cannot be read is a finding of its own.
        let config = understood(&directory).unwrap_or_else(|e| format!("{e:#}\n").into_bytes());
        archive.add(&format!("{module}/config.json"), &config)?;
        let memory = std::fs::read(node.places.memory(module)).unwrap_or_default();
        archive.add(&format!("{module}/memory.json"), &memory)?;
        let logs = std::fs::read_dir(node.places.logs(module));
        for entry in logs.into_iter().flatten().flatten() {
            if let (Some(name), Ok(bytes)) = (entry.file_name().to_str(), tail(&entry.path())) {
                archive.add(&format!("{module}/log/{name}"), &bytes)?;
            }
        }
    }
    Ok(Snapshot {
        node: state.node.clone(),
        zip: STANDARD.encode(archive.0.finish()?.into_inner()),
    })
}

/// A snapshot of this node.
#[utoipa::path(get, path = "/api/v1/snapshot", responses((status = 200, body = Snapshot)))]
pub(super) async fn snapshot(State(node): State<Arc<Node>>) -> Response {
    let state = node_state(&node);
    let taken = tokio::task::spawn_blocking(move || take(&node, &state)).await;
    match taken {
        Ok(Ok(snapshot)) => Json(snapshot).into_response(),
        Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_log_the_end_is_taken_and_of_variables_only_the_names() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut long = vec![b'x'; MAX_LOG as usize];
        long.extend(b"the end");
        std::fs::write(&log, long).unwrap();
        let end = tail(&log).unwrap();
        assert_eq!(end.len() as u64, MAX_LOG);
        assert!(end.ends_with(b"the end"));
        let secret = dir.path().join("mail.password");
        std::fs::write(&secret, "hunter2").unwrap();
        let text = format!(
            "<safe><service><rfs><replicated dir=\"/vm\"/></rfs><notify mail=\"a@b.org\" \
             from=\"a@b.org\" server=\"b.org\" user=\"a\" passwordfile=\"{}\"/><user>\
             <var name=\"PASSWORD\" value=\"hunter2\"/></user></service></safe>",
            secret.display()
        );
        std::fs::write(dir.path().join(versions::FILE), text).unwrap();
        let told = String::from_utf8(understood(dir.path()).unwrap()).unwrap();
        assert!(
            told.contains("PASSWORD")
                && told.contains("mail.password")
                && !told.contains("hunter2"),
            "{told}"
        );
    }
}
