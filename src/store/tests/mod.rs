//! Tests of the store through its public interface.

mod archive;
mod check;
mod copies;
mod corpus;
mod count;
mod examples;
mod isolated;
mod maintain;
mod migrate;
mod open;
mod plan;
mod pure;
mod queries;
mod records;
mod repair;
mod retention;
mod rules;
mod scan;
mod threads;
