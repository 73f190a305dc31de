//! The guarantees, one module each, on a real broker.

mod tidy;
