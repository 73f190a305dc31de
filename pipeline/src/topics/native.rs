//! librdkafka's C API, where rust-rdkafka has nothing: what a topic is to this
//! user. What it gives out is safe, and it decides nothing.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::ptr;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::bindings as c;
use rdkafka::bindings::rd_kafka_AclOperation_t as acl;
use rdkafka::bindings::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
use rdkafka::bindings::rd_kafka_resp_err_t as code;
use rdkafka::client::Client;
use rdkafka::error::{KafkaError, KafkaResult};

use super::rights::Operation;

/// An answer is a little later than its own timeout where it is that no answer came.
const GRACE_MS: i32 = 5_000;

/// How a topic looks to this user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// There is none.
    Missing,
    /// This user may not know whether there is one.
    Hidden,
    /// There is one.
    There {
        /// Its partitions; 0 where it was made this moment.
        partitions: i32,
        /// What this user may do with it; `None` where the broker does not say.
        allowed: Option<Vec<Operation>>,
    },
}

/// What is destroyed by a function of the library's.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: ours, alive, and not used again.
            unsafe { (self.1)(self.0) };
        }
    }
}

/// How topics look to this user, by their names. None is made by the question.
///
/// # Errors
/// Where no broker answers, or one of them refuses to answer for other reasons
/// than that there is no such topic, or none that this user may see.
pub(super) fn describe<C: ClientContext>(
    client: &Client<C>,
    names: &[&str],
    timeout: Duration,
) -> KafkaResult<BTreeMap<String, Seen>> {
    let names = names.iter().map(|name| CString::new(*name)).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX - GRACE_MS);
    let native = client.native_ptr();
    // SAFETY: the client outlives all that is made of it here; the names are copied; what the
    // result holds lives as long as the event; an error that is set aside is destroyed.
    unsafe {
        let options = Owned(
            c::rd_kafka_AdminOptions_new(native, RD_KAFKA_ADMIN_OP_DESCRIBETOPICS),
            c::rd_kafka_AdminOptions_destroy,
        );
        let refused = c::rd_kafka_AdminOptions_set_request_timeout(options.0, timeout_ms, ptr::null_mut(), 0);
        check(refused)?;
        let refused = c::rd_kafka_AdminOptions_set_include_authorized_operations(options.0, 1);
        let refused = Owned(refused, c::rd_kafka_error_destroy);
        if !refused.0.is_null() {
            check(c::rd_kafka_error_code(refused.0))?;
        }
        let topics = Owned(
            c::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()),
            c::rd_kafka_TopicCollection_destroy,
        );
        let queue = Owned(c::rd_kafka_queue_new(native), c::rd_kafka_queue_destroy);
        c::rd_kafka_DescribeTopics(native, topics.0, options.0, queue.0);
        let event = Owned(c::rd_kafka_queue_poll(queue.0, timeout_ms + GRACE_MS), c::rd_kafka_event_destroy);
        if event.0.is_null() {
            check(code::RD_KAFKA_RESP_ERR__TIMED_OUT)?;
        }
        check(c::rd_kafka_event_error(event.0))?;
        let (result, mut count) = (c::rd_kafka_event_DescribeTopics_result(event.0), 0);
        let described = c::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        let mut seen = BTreeMap::new();
        for index in 0..count {
            let topic = *described.add(index);
            let name = CStr::from_ptr(c::rd_kafka_TopicDescription_name(topic));
            seen.insert(name.to_string_lossy().into_owned(), look(topic)?);
        }
        Ok(seen)
    }
}

/// # Safety
/// The description is alive.
unsafe fn look(topic: *const c::rd_kafka_TopicDescription_t) -> KafkaResult<Seen> {
    // SAFETY: the description is alive, and what it holds with it; null is no error.
    unsafe {
        match c::rd_kafka_error_code(c::rd_kafka_TopicDescription_error(topic)) {
            code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART => return Ok(Seen::Missing),
            code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => return Ok(Seen::Hidden),
            // No leader yet: it was made this moment.
            code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE => {}
            other => check(other)?,
        }
        let (mut partitions, mut operations) = (0, 0);
        c::rd_kafka_TopicDescription_partitions(topic, &raw mut partitions);
        let allowed = c::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut operations);
        let allowed = (!allowed.is_null())
            .then(|| (0..operations).filter_map(|index| operation(*allowed.add(index))).collect());
        Ok(Seen::There { partitions: i32::try_from(partitions).unwrap_or(i32::MAX), allowed })
    }
}

fn check(code: c::rd_kafka_resp_err_t) -> KafkaResult<()> {
    match code {
        code::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        code => Err(KafkaError::AdminOp(code.into())),
    }
}

/// `None` for what is of no use with a topic.
fn operation(operation: acl) -> Option<Operation> {
    Some(match operation {
        acl::RD_KAFKA_ACL_OPERATION_READ => Operation::Read,
        acl::RD_KAFKA_ACL_OPERATION_WRITE => Operation::Write,
        acl::RD_KAFKA_ACL_OPERATION_DELETE => Operation::Delete,
        acl::RD_KAFKA_ACL_OPERATION_DESCRIBE => Operation::Describe,
        acl::RD_KAFKA_ACL_OPERATION_ALTER_CONFIGS => Operation::AlterConfigs,
        acl::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS => Operation::DescribeConfigs,
        _ => return None,
    })
}
