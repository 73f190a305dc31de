//! A topology whose topics are nobody else's.

use ticket_pipeline::topology::Topology;

/// The shipped topology with names of its own: group, raw topic and every
/// output. What else it is to say comes as whole sections behind it.
#[must_use]
pub fn text(name: &str, source: &str, partitions: i32, brokers: &str) -> String {
    let mut topics: Vec<String> = Vec::new();
    let mut text = format!(
        "group: {name}\nsource:\n  topic: {source}\n  partitions: {partitions}\noutputs:\n  late: {name}.ticket.late\n  \
         dead_letter: {name}.ticket.dlq\n  events:\n"
    );
    for event_type in &Topology::shipped().event_types {
        // The alias goes where its original goes.
        if !topics.contains(&event_type.topic) {
            text += &format!("    {}: {name}.{}\n", event_type.name, event_type.topic);
            topics.push(event_type.topic.clone());
        }
    }
    // Several run side by side.
    text + &format!("http:\n  listen: off\nkafka:\n  brokers: {brokers}\n")
}
