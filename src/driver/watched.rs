//! Tasks whose panic is not lost.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

pin_project! {
    /// Runs a task, and calls `on_panic` while a panic in it unwinds. Executors catch what a task panics
    /// with and tell only who waits for the task, and nobody waits for a connection's.
    ///
    /// No `async fn`, which would hold the task twice: thousands of readers wait in one of these.
    pub struct Watched<T, F: Fn()> {
        #[pin]
        task: T,
        on_panic: F,
    }
}

/// See [`Watched`].
pub fn watched<T: Future<Output = ()>, F: Fn()>(task: T, on_panic: F) -> Watched<T, F> {
    Watched { task, on_panic }
}

impl<T: Future<Output = ()>, F: Fn()> Future for Watched<T, F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let _guard = Guard(this.on_panic);
        this.task.poll(context)
    }
}

struct Guard<'a, F: Fn()>(&'a F);

impl<F: Fn()> Drop for Guard<'_, F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)();
        }
    }
}
