//! Empty batches, kept for the next writes of a shard.

use crate::wire::batch::{Batch, Shape};

/// Most batches kept, and the most bytes they may hold together.
const KEPT_MAX: usize = 1024;
const KEPT_BYTES_MAX: usize = 16 << 20;

/// See the module.
#[derive(Default)]
pub struct Batches {
    #[expect(
        clippy::vec_box,
        reason = "a batch travels boxed; keeping the box saves its allocation"
    )]
    kept: Vec<Box<Batch>>,
    /// What they hold, at most [`KEPT_BYTES_MAX`].
    bytes: usize,
}

impl Batches {
    /// An empty batch.
    pub fn take(&mut self, shape: Shape) -> Box<Batch> {
        let batch = self.kept.pop().unwrap_or_else(|| Box::new(Batch::new(shape)));
        self.bytes -= batch.held_bytes();
        batch
    }

    /// Takes a batch that has been written, if there is room for it.
    pub fn put(&mut self, mut batch: Box<Batch>) {
        let bytes = self.bytes + batch.held_bytes();
        if self.kept.len() < KEPT_MAX && bytes <= KEPT_BYTES_MAX {
            self.bytes = bytes;
            batch.clear();
            self.kept.push(batch);
        }
    }
}
