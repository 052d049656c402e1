//! Tasks whose panic is not lost.

use std::future::Future;

/// Runs `task`, and calls `on_panic` while a panic in it unwinds. Executors catch what a task panics with
/// and tell only who waits for the task, and nobody waits for a connection's.
pub async fn watched(task: impl Future<Output = ()>, on_panic: impl FnOnce()) {
    let _guard = Guard(Some(on_panic));
    task.await;
}

struct Guard<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for Guard<F> {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(on_panic) = self.0.take()
        {
            on_panic();
        }
    }
}
