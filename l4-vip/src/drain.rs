//! The tasks of one worker: how to wait until they have ended, and how to cut those that do not end in time.
//!
//! It does not decide what a task does when it is cut: dropping its future is all that happens to it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

#[derive(Debug, Default)]
pub(crate) struct Tasks {
    next: Cell<u64>,
    live: RefCell<HashMap<u64, AbortHandle, foldhash::fast::FixedState>>,
    none_left: Notify,
}

impl Tasks {
    /// Runs `task` on the ambient `LocalRuntime`.
    pub(crate) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static) {
        let key = self.next.get();
        self.next.set(key + 1);
        let entry = Entry { tasks: Rc::clone(self), key };
        let handle = tokio::task::spawn_local(async move {
            let _entry = entry;
            task.await;
        });
        self.live.borrow_mut().insert(key, handle.abort_handle());
    }

    /// Waits until every task has ended. After `timeout` those that are left are cut. Returns how many that were.
    pub(crate) async fn drain(&self, timeout: Duration) -> usize {
        if tokio::time::timeout(timeout, self.ended()).await.is_ok() {
            return 0;
        }
        let handles: Vec<AbortHandle> = self.live.borrow().values().cloned().collect();
        for handle in &handles {
            handle.abort();
        }
        self.ended().await;
        handles.len()
    }

    async fn ended(&self) {
        while !self.live.borrow().is_empty() {
            self.none_left.notified().await;
        }
    }
}

/// A task's place in the list, given up however the task ends.
struct Entry {
    tasks: Rc<Tasks>,
    key: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut live = self.tasks.live.borrow_mut();
        live.remove(&self.key);
        if live.is_empty() {
            self.tasks.none_left.notify_one();
        }
    }
}
