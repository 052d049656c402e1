//! For the operator: metrics.
pub mod metrics;
