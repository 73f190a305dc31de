//! What the benchmarks and the fault suite share: a load that is made of the
//! real histories, a broker to ask, and processes that run the pipeline.
//!
//! It measures nothing and breaks nothing.

pub mod broker;
pub mod histories;
pub mod load;
pub mod process;
pub mod random;
pub mod stream;
pub mod topology;
