//! The thread that ends the flows to backends that are gone, apart from whoever changes the VIPs: reading the table of
//! connections takes longer than a change may.
//!
//! It keeps no history. Asked about a frontend again before it came to it, it answers for the newest state.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::flows::{Members, sweep};
use crate::netlink::Socket;

/// Changes come in groups, and a packet that was on its way through the old rules has made its entry by then.
const GATHER: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Sweeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

/// Bounded by the number of frontends.
#[derive(Debug, Default)]
struct Wanted {
    members: Members,
    is_over: bool,
}

impl Sweeper {
    /// The thread and its socket live in the network namespace of the caller.
    pub(super) fn start() -> io::Result<Self> {
        let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("vip-flows".into()).spawn(move || {
            while let Some(members) = theirs.next() {
                match sweep(&mut socket, &members) {
                    Ok(0) => {}
                    Ok(n_flows) => tracing::debug!(n_flows, "ended flows to backends that are gone"),
                    Err(error) => tracing::warn!(%error, "cannot end flows to backends that are gone"),
                }
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn ask(&self, members: Members) {
        if !members.is_empty() {
            self.shared.lock().members.extend(members);
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has no result, and a panic has been reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// None when there will be no more.
    fn next(&self) -> Option<Members> {
        let idle = |wanted: &mut Wanted| !wanted.is_over && wanted.members.is_empty();
        let wanted = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        let (mut wanted, _) = self
            .changed
            .wait_timeout_while(wanted, GATHER, |wanted| !wanted.is_over)
            .unwrap_or_else(PoisonError::into_inner);
        // What was asked for last is done before the end.
        let members = std::mem::take(&mut wanted.members);
        (!members.is_empty()).then_some(members)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
