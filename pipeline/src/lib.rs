//! Reads raw ticket events from a Kafka topic and says, exactly once and in
//! order, what changed.
//!
//! The modules in the order in which a record flows through them:
//!
//! ```text
//!  topology    what is read, derived and written, as a validated value
//!  record      bytes at topic, partition, offset: what comes in, what goes out
//!  scan        finds the bytes at which a JSON string must look
//!  grammar     what is JSON, and where in it each value stands
//!  json        bytes to a strict, borrowed JSON document
//!  number      numbers exactly
//!  canonical   which JSON values are equal
//!  timestamp   envelope timestamps in milliseconds
//!  envelope    bytes of a raw record to an envelope, or the reason why not
//!  field       what one JSON value says of an identity, a set, a map
//!  ticket      what a ticket says of each tracked field
//!  derive      what changed: one verdict for each rule
//!  announcement native specifics and their derived twins
//!  codec       numbers and bytes in our own binary forms
//!  entry       what is remembered of one ticket, and its encoding
//!  known       what the store knows of each field, read only where an event differs
//!  transition  what one ticket event does to its entry, and what it derives
//!  outgoing    forwarded, derived and dead-letter records: bytes and headers
//!  truncate    the size limit
//!  partition   the partition that Kafka's Java client would choose
//!  task        one input partition: a record in; outgoing records and overlay out
//!  rekey       a raw record in; the same, keyed by its ticket, out
//!  stage       which topic is read as which group, and what is done with it
//!  clients     the Kafka clients' configuration
//!  store       committed state on disk, overlay in memory, positions
//!  commit_record what the ids log and the committed offsets' metadata say
//!  consumed    a record as the client hands it over, borrowed
//!  restore     bring a store to where the log says it should be
//!  transaction begin, send, commit, abort; what an error asks of the worker
//!  rebuild     make the state what it was, for a replay
//!  crash       steps at which a test lets the process die
//!  broken      what a build that is broken on purpose does to a record
//!  worker      the loop: poll, process, commit, apply; rebalance, shutdown
//!  health      the process as seen from outside, and the judgement on it
//!  telemetry   OpenTelemetry: every metric's name, unit and meaning
//!  http        pages about the process: live, ready, metrics, status
//!  pipeline    the process: workers, signals, progress, the state directory's lock
//!  topics      what the topics must be like, and making them so
//!  audit       proves on the topics that nothing was lost, doubled or changed
//!  lines       records as lines of JSON, for people and tests
//! ```

// Another checkout's build is never taken for this one's: see `.cargo/config.toml`.
const _: Option<&str> = option_env!("CHECKOUT");

pub mod topology;

pub mod record;

pub mod scan;

pub mod grammar;

pub mod json;

pub mod number;

pub mod canonical;

pub mod timestamp;

pub mod envelope;

pub mod field;

pub mod ticket;

pub mod derive;

pub mod announcement;

pub mod codec;

pub mod entry;

pub mod known;

pub mod transition;

pub mod outgoing;

pub mod truncate;

pub mod partition;

pub mod task;

pub mod rekey;

pub mod stage;

pub mod clients;

pub mod store;

pub mod commit_record;

pub mod consumed;

pub mod restore;

pub mod transaction;

pub mod rebuild;

pub mod crash;

pub mod broken;

pub mod worker;

pub mod health;

pub mod telemetry;

pub mod http;

pub mod pipeline;

pub mod topics;

pub mod audit;

pub mod lines;
