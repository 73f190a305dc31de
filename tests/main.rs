//! The guarantees, one module each. Those of the first group need no broker;
//! the others share one real Kafka, which this binary starts and takes down.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "in a test a panic is the report, and it names the line"
)]

// What tests are told with.
mod datasets;
mod lines;
mod random;
mod story;
mod tasks;
mod wait;

// The architecture.
mod tidy;

// With no broker.
mod expected;
mod laws;
mod rebuild;

// On the broker: what it takes,
mod broker;
mod collector;
mod pipeline;
mod process;
mod secure;
mod wire;

// and what holds there.
mod audit;
mod bad_input;
mod crash;
mod damage;
mod large;
mod lost_logs;
mod owners;
mod pages;
mod rekey;
mod replay;
mod restore;
mod same_output;
mod security;
mod shutdown;
mod start;
mod telemetry;
mod too_large;
mod topics;
mod traces;
