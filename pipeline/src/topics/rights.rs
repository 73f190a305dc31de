//! What the pipeline's user must be allowed to do with topics, as data, held
//! against what Kafka says that it is allowed. It asks nobody.
//!
//! The README's table says the same for people; `tests/security.rs` runs the
//! pipeline with that table's rights, and without each of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::native::Seen;
use super::wanted::{Role, Wanted};

/// What Kafka's ACLs allow, by the names that its tools have for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Delete,
    Describe,
    AlterConfigs,
    DescribeConfigs,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Read => "Read",
            Operation::Write => "Write",
            Operation::Delete => "Delete",
            Operation::Describe => "Describe",
            Operation::AlterConfigs => "AlterConfigs",
            Operation::DescribeConfigs => "DescribeConfigs",
        }
    }

    /// Whoever may do one of these may see that there is a topic.
    fn shows(self) -> bool {
        matches!(self, Operation::Read | Operation::Write | Operation::Delete | Operation::Describe)
    }
}

/// What is to be done with topics, which says what must be allowed with each.
pub(super) type Needed = fn(Role) -> &'static [Operation];

/// What `run` does.
pub(super) fn to_run(role: Role) -> &'static [Operation] {
    use Operation::{Delete, DescribeConfigs, Read, Write};
    match role {
        Role::Raw => &[Read, DescribeConfigs],
        Role::Events | Role::Late | Role::DeadLetter => &[Write, DescribeConfigs],
        Role::Rekeyed | Role::Changelog => &[Read, Write, DescribeConfigs],
        // It is cut behind the window.
        Role::Ids => &[Read, Write, Delete, DescribeConfigs],
    }
}

/// What `topics plan` does.
pub(super) fn to_plan(_: Role) -> &'static [Operation] {
    &[Operation::Describe, Operation::DescribeConfigs]
}

/// What `topics apply` does with topics that are there.
pub(super) fn to_apply(role: Role) -> &'static [Operation] {
    use Operation::{AlterConfigs, Describe, DescribeConfigs};
    match role {
        // It is never altered.
        Role::Raw => &[Describe, DescribeConfigs],
        _ => &[Describe, DescribeConfigs, AlterConfigs],
    }
}

/// What is not allowed and must be, with the remedy; `None` where nothing is lacking.
pub(super) fn lacking(wanted: &[Wanted], seen: &BTreeMap<String, Seen>, needed: Needed) -> Option<String> {
    let mut text = String::new();
    for Wanted { name, role, .. } in wanted {
        let lacks: Vec<&str> = needed(*role)
            .iter()
            .filter(|operation| match seen.get(name) {
                Some(Seen::There { allowed: Some(allowed), .. }) => !allowed.contains(operation),
                Some(Seen::Hidden) => operation.shows(),
                _ => false,
            })
            .map(|operation| operation.name())
            .collect();
        if !lacks.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n  {} on topic {name}", lacks.join(", "));
            if seen.get(name) == Some(&Seen::Hidden) {
                text.push_str(" (where it exists)");
            }
        }
    }
    (!text.is_empty()).then(|| {
        format!(
            "Kafka's ACLs do not allow the pipeline's user:{text}\nallow it with kafka-acls.sh --add, a call for each; \
             docs/security.md has an example"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking_of(role: Role, seen: Seen) -> Option<String> {
        let wanted = Wanted { name: "t".to_owned(), role, partitions: 1, settings: Vec::new() };
        lacking(&[wanted], &[("t".to_owned(), seen)].into(), to_run)
    }

    fn there(allowed: Option<Vec<Operation>>) -> Seen {
        Seen::There { partitions: 1, allowed }
    }

    #[test]
    fn what_is_lacking_is_named_with_the_topic() {
        let said = lacking_of(Role::Ids, there(Some(vec![Operation::Read, Operation::Write]))).unwrap();
        assert!(said.contains("\n  Delete, DescribeConfigs on topic t\n"), "{said}");
        let said = lacking_of(Role::Events, Seen::Hidden).unwrap();
        assert!(said.contains("\n  Write on topic t (where it exists)\n"), "{said}");
    }

    #[test]
    fn nothing_is_lacking_where_all_is_allowed_or_the_broker_does_not_say() {
        for seen in [there(Some(to_run(Role::Raw).to_vec())), there(None), Seen::Missing] {
            assert_eq!(lacking_of(Role::Raw, seen), None);
        }
    }
}
