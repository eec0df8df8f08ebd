//! How far running resyncs are, beyond their percent: asked of the drivers when somebody looks.
//!
//! A driver serves few callers at once, and one that hangs would serve no other any more: each is
//! asked by one call at a time, whoever looks and however often.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fs_driver::store::Layout;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::daemon::Node;
use crate::driver;
use crate::runner::ModuleState;

/// What was told is shown for so long.
const FRESH: Duration = Duration::from_millis(500);

/// A driver that did not answer is not asked again for so long: it may hang, and is killed then.
const PAUSE: Duration = Duration::from_secs(10);

/// A running resync.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Resync {
    /// `comparing`, `moving` or `flushing`; the percent is of this phase.
    pub(crate) phase: String,
    /// Bytes of file data that were compared or moved in it.
    pub(crate) bytes: u64,
    /// Bytes compared or moved in a second, of late.
    pub(crate) rate: u64,
    /// Seconds until the phase ends at this rate, if that can be said.
    pub(crate) seconds_left: Option<u64>,
}

impl Resync {
    /// From a driver's status; nothing if no resync runs.
    pub(crate) fn of(status: &serde_json::Value) -> Option<Resync> {
        let resync = &status["resync"];
        let number = |key: &str| resync[key].as_f64().map(|n| n.max(0.0).round() as u64);
        let phase = resync["phase"].as_str()?;
        let bytes = match phase {
            "comparing" => "compared_bytes",
            "moving" | "flushing" => "moved_bytes",
            _ => return None,
        };
        Some(Resync {
            phase: phase.to_owned(),
            bytes: number(bytes).unwrap_or(0),
            rate: number("rate").unwrap_or(0),
            seconds_left: number("seconds_left"),
        })
    }
}

/// What a driver said last.
#[derive(Debug)]
struct Told {
    again: Instant,
    asked: bool,
    last: Option<Resync>,
}

/// What drivers said last, by module.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<BTreeMap<String, Told>>);

impl Progress {
    /// What is shown of a module, or nothing if its driver is to be asked now by the caller.
    fn known(&self, module: &str, now: Instant) -> Option<Option<Resync>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = all.entry(module.to_owned()).or_insert(Told {
            again: now,
            asked: false,
            last: None,
        });
        if told.asked || now < told.again {
            return Some(told.last.clone());
        }
        told.asked = true;
        None
    }

    fn told(&self, module: &str, answer: Option<Option<Resync>>, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = if answer.is_some() { FRESH } else { PAUSE };
        let told = Told {
            again: now + pause,
            asked: false,
            last: answer.flatten(),
        };
        all.insert(module.to_owned(), told);
    }

    /// A module without a resync has nothing to be shown at its next one.
    fn forget(&self, module: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(module).is_some_and(|told| !told.asked) {
            all.remove(module);
        }
    }
}

/// Completes what is shown of modules.
pub(super) async fn complete(node: &Arc<Node>, modules: &mut [ModuleState]) {
    let all = modules.iter_mut().map(|module| async move {
        if module.percent.is_none() {
            return node.progress.forget(&module.module);
        }
        if let Some(known) = node.progress.known(&module.module, Instant::now()) {
            module.resync = known;
            return;
        }
        let (node, name) = (node.clone(), module.module.clone());
        let layout = Layout::new(PathBuf::from(&module.base));
        // It ends, and says so, whether the one who looked is still there or not.
        let asked = tokio::task::spawn_blocking(move || {
            let answer = driver::status(&layout).map(|status| Resync::of(&status));
            if let Err(error) = &answer {
                tracing::debug!(module = name, %error, "the driver does not tell how far it is");
            }
            let answer = answer.ok();
            node.progress.told(&name, answer.clone(), Instant::now());
            answer.flatten()
        });
        module.resync = asked.await.ok().flatten();
    });
    futures_util::future::join_all(all).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_resync_is_told_and_an_ended_one_is_not() {
        let mut status = serde_json::json!({"resync": {
            "phase": "comparing", "percent": 12.3, "compared_bytes": 5_000_000, "moved_bytes": 7,
            "rate": 2e6, "seconds_left": 7.6,
        }});
        let told = Resync::of(&status).unwrap();
        assert_eq!((told.bytes, told.rate), (5_000_000, 2_000_000));
        assert_eq!(told.seconds_left, Some(8));
        status["resync"]["phase"] = "moving".into();
        status["resync"]["seconds_left"] = serde_json::Value::Null;
        let told = Resync::of(&status).unwrap();
        assert_eq!((told.bytes, told.seconds_left), (7, None));
        for phase in ["done", "interrupted"] {
            status["resync"]["phase"] = phase.into();
            assert_eq!(Resync::of(&status), None);
        }
        assert_eq!(Resync::of(&serde_json::json!({ "resync": null })), None);
    }

    #[test]
    fn a_driver_is_asked_by_one_call_at_a_time_and_left_alone_when_it_does_not_answer() {
        let progress = Progress::default();
        let resync = Resync {
            phase: "moving".into(),
            bytes: 1,
            rate: 2,
            seconds_left: None,
        };
        let begin = Instant::now();
        assert_eq!(progress.known("vm", begin), None, "the first one asks");
        assert_eq!(progress.known("vm", begin + PAUSE), Some(None));
        progress.told("vm", Some(Some(resync.clone())), begin);
        assert_eq!(progress.known("vm", begin), Some(Some(resync.clone())));
        assert_eq!(progress.known("vm", begin + FRESH), None);
        // Whoever looks meanwhile sees what was told before.
        assert_eq!(progress.known("vm", begin + FRESH), Some(Some(resync)));
        progress.told("vm", None, begin);
        assert_eq!(progress.known("vm", begin + FRESH), Some(None));
        assert_eq!(progress.known("vm", begin + PAUSE), None);
        progress.forget("vm");
        assert_eq!(progress.known("vm", begin), Some(None), "it is asked still");
    }
}
