//! The threads: runtimes of one thread each, for the control side and for every worker.
//!
//! Nothing of a request's path runs on the control thread, so no status query costs a user's request its time.

use std::io;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, LocalRuntime, Runtime};

use crate::failure::Failure;

/// A third of a worker's share when both want one core, which keeps changes coming.
const CONTROL_NICENESS: libc::c_int = 5;

/// The shortest turn that Linux grants (0.1 ms, in nanoseconds): a thread with short turns need not wait for the end of
/// a longer one of another thread when it wakes.
const WORKER_TURN: u64 = 100_000;

/// A runtime that lives on the calling thread.
pub fn single_threaded(purpose: &str) -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::chain(format!("cannot start the {purpose} runtime"), &e))
}

/// One worker per core unless said otherwise.
pub fn n_workers(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

/// Lets the workers go first where there are more threads than cores: reading and compiling a large cluster takes
/// seconds of a core, and no request is to wait for it. For the calling thread and those that it starts from now on,
/// so not where instances are started.
pub fn yield_to_workers() {
    // SAFETY: takes numbers only; on Linux, 0 is the calling thread. Without the right to it, nothing changes.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, CONTROL_NICENESS) };
}

/// Lets the calling thread, when a packet wakes it, interrupt threads that calculate for long, as compiling a large
/// cluster or a neighbour's program does; without this it waits for the end of their turn, some milliseconds. Its share
/// of a core stays what it was.
fn take_short_turns() {
    // SAFETY: an all-zero value is a valid one; both calls touch only it and heed its size. 0 is the calling thread.
    unsafe {
        let mut attributes: libc::sched_attr = std::mem::zeroed();
        let size = size_of::<libc::sched_attr>() as u32;
        if libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) == 0 {
            attributes.sched_runtime = WORKER_TURN;
            // Kernels before 6.12 accept it without effect.
            libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
        }
    }
}

/// Starts a thread that runs what `work` makes, with `spawn_local` available. `work` itself runs on the thread, so
/// the future need not be `Send`. The result says when it has ended; it is an error when it panicked.
///
/// A `LocalRuntime` and not a `LocalSet`, which is a scheduler within a scheduler: it costs every request two more
/// queues, and a look at what the worker itself waits for.
pub fn spawn_worker<F>(name: String, work: impl FnOnce() -> F + Send + 'static) -> io::Result<JoinHandle<()>>
where
    F: Future<Output = ()> + 'static,
{
    let (started, is_started) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        take_short_turns();
        // Whoever starts the thread waits for what comes of it.
        match LocalRuntime::new() {
            Ok(runtime) => {
                let _ = started.send(Ok(()));
                runtime.block_on(work());
            }
            Err(error) => drop(started.send(Err(error))),
        }
    })?;
    is_started.recv().map_err(io::Error::other)??;
    Ok(thread)
}
