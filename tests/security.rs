//! The connection: TLS, SASL, exactly the rights of the README's table, and
//! secrets that nobody gets to see.

use std::collections::BTreeSet;
use std::process::Output;

use ticket_pipeline::topology::{KeyedBy, Topology};

use crate::broker;
use crate::datasets::HISTORIES;
use crate::pages::{self, Pages};
use crate::pipeline::{Pipeline, Settings};
use crate::secure::{
    self, CERTIFIED, KEY_PASSWORD, PLAIN_PASSWORD, PRINCIPAL, Resource, Right, SCRAM_PASSWORD, USER,
};
use crate::story::{in_every_partition, moved, opened};

/// How a process says who it is.
#[derive(Debug, Clone, Copy)]
enum As {
    Plain,
    /// By this one of its mechanisms.
    Scram(&'static str),
    Certified,
}

impl As {
    fn principal(self) -> &'static str {
        match self {
            As::Plain | As::Scram(_) => PRINCIPAL,
            As::Certified => CERTIFIED,
        }
    }

    fn brokers(self) -> &'static str {
        match self {
            As::Plain | As::Scram(_) => &broker::secure().sasl_ssl,
            As::Certified => &broker::secure().ssl,
        }
    }

    /// As a topology says it.
    fn properties(self) -> String {
        let folder = broker::secure().certificates.display();
        match self {
            As::Plain => format!(
                "security.protocol: sasl_ssl\nssl.ca.location: {folder}/ca.pem\nsasl.mechanism: PLAIN\n\
                 sasl.username: {USER}\nsasl.password: ${{TEST_PASSWORD:-{PLAIN_PASSWORD}}}\n"
            ),
            As::Scram(mechanism) => {
                // A file for each: a test must not write while another's process reads.
                let password = format!("{folder}/password-{mechanism}");
                std::fs::write(&password, format!("{SCRAM_PASSWORD}\n")).expect("the folder is ours");
                format!(
                    "security.protocol: sasl_ssl\nssl.ca.location: {folder}/ca.pem\nsasl.mechanism: {mechanism}\n\
                     sasl.username: {USER}\nsasl.password: ${{file:{password}}}\n"
                )
            }
            As::Certified => format!(
                "security.protocol: ssl\nssl.ca.location: {folder}/ca.pem\n\
                 ssl.certificate.location: {folder}/certified.crt\nssl.key.location: {folder}/certified.key\n\
                 ssl.key.password: {KEY_PASSWORD}\n"
            ),
        }
    }
}

/// From now on its processes are nobody but this user.
fn connect_as(pipeline: &Pipeline, user: As) {
    connect(pipeline, user.brokers(), &user.properties());
}

fn connect(pipeline: &Pipeline, brokers: &str, properties: &str) {
    let indented = properties.replace('\n', "\n    ");
    pipeline.rewrite(|text| {
        let (before, after) = text.split_once("kafka:\n").expect("it has that section");
        let (_, after) = after.split_once("runtime:\n").expect("it has the next section");
        format!("{before}kafka:\n  brokers: {brokers}\n  properties:\n    {indented}\nruntime:\n{after}")
    });
}

// --- The README's table ------------------------------------------------------

/// The rows of a command, with the names of a pipeline in place of those that are shipped.
fn rights(pipeline: &Pipeline, command: &str) -> Vec<Right> {
    let readme = include_str!("../README.md");
    let (_, table) =
        readme.split_once("| command | resource | operations |").expect("the README has a table");
    let topology = Topology::load(&pipeline.topology_file()).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let is_rekeyed = topology.source.keyed_by == KeyedBy::Nothing;
    let mut rights: Vec<Right> = Vec::new();
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, who, resource, operations, ..] = cells[..] else { panic!("{row}") };
        let is_of_rekeying = who.ends_with("`keyed_by: nothing`");
        if !who.starts_with(&format!("`{command}`")) || (is_of_rekeying && !is_rekeyed) {
            continue;
        }
        let resources = resources(pipeline, &topology, resource, &rights);
        for operation in operations.split(',').map(|operation| operation.trim().to_owned()) {
            let right = |resource| Right { operation: operation.clone(), resource };
            rights.extend(resources.iter().cloned().map(right));
        }
    }
    assert!(!rights.is_empty(), "the README's table has rows for `{command}`");
    rights
}

fn resources(pipeline: &Pipeline, topology: &Topology, cell: &str, above: &[Right]) -> Vec<Resource> {
    let named = |name: &str| match name.strip_prefix("ticket-pipeline") {
        Some(rest) => format!("{}{rest}", pipeline.group()),
        None => pipeline.topic(name),
    };
    let names: Vec<String> = cell.split('`').skip(1).step_by(2).map(named).collect();
    let topics = names.iter().cloned().map(Resource::Topic);
    if cell == "every other topic above" {
        let own: BTreeSet<&str> = above.iter().filter_map(topic_of).collect();
        let is_rekeyed = topology.source.keyed_by == KeyedBy::Nothing;
        let internal = [&topology.changelog_topic, &topology.ids_topic].map(String::as_str);
        let internal = internal.into_iter().chain(is_rekeyed.then_some(topology.rekeyed_topic.as_str()));
        let all = topology.output_topics().chain(internal).filter(|topic| !own.contains(topic));
        return all.map(|topic| Resource::Topic(topic.to_owned())).collect();
    }
    if cell.starts_with("the topic of every event type") {
        let all = topology.output_topics().map(|topic| Resource::Topic(topic.to_owned()));
        let all: Vec<Resource> = all.collect();
        assert!(topics.clone().all(|topic| all.contains(&topic)), "{cell}");
        return all;
    }
    match cell.split_once(' ') {
        Some(("topic", _)) => topics.collect(),
        Some(("group", _)) => names.into_iter().map(Resource::Group).collect(),
        Some(("transactional", _)) => {
            let prefix = |name: String| name.strip_suffix('*').expect("a prefix ends so").to_owned();
            names.into_iter().map(prefix).map(Resource::TransactionalIds).collect()
        }
        _ => panic!("{cell}"),
    }
}

fn topic_of(right: &Right) -> Option<&str> {
    match &right.resource {
        Resource::Topic(topic) => Some(topic),
        _ => None,
    }
}

/// Of the topics of event types one is as good as all.
fn one_of_each(pipeline: &Pipeline, rights: &[Right]) -> Vec<Right> {
    let topology = Topology::load(&pipeline.topology_file()).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let others: BTreeSet<&str> =
        topology.event_types.iter().skip(1).map(|event_type| event_type.topic.as_str()).collect();
    let is_another = |right: &Right| topic_of(right).is_some_and(|topic| others.contains(topic));
    rights.iter().filter(|right| !is_another(right)).cloned().collect()
}

/// Whether an error says that exactly this is not allowed.
fn names(said: &str, Right { operation, resource }: &Right) -> bool {
    match resource {
        Resource::Topic(topic) => said.lines().any(|line| {
            line.trim_start().split_once(" on topic ").is_some_and(|(operations, named)| {
                let named = named.trim_end_matches(" (where it exists)");
                named == topic && operations.split(", ").any(|named| named == operation)
            }) || line.contains(&format!("{topic}: "))
                && line.contains(&format!("the user needs {operation} on that topic"))
        }),
        Resource::Group(group) => said.contains(&format!("{operation} on group {group} ")),
        Resource::TransactionalIds(prefix) => {
            said.contains(&format!("{operation} on transactional id {prefix}"))
        }
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A run that ends by itself, with an error; what it said.
fn refused(pipeline: &Pipeline, what: &str) -> String {
    let ended = pipeline.start_with("a", &["--until-caught-up"]).wait();
    assert_eq!(ended.status.code(), Some(1), "{what}: {}", ended.log.0);
    ended.log.0
}

// --- The guarantees ----------------------------------------------------------

/// Made and fed by somebody who may, then run by a user with the table's rights alone.
fn assert_runs(name: &str, user: As, settings: &Settings) {
    let pipeline = Pipeline::new(name, settings);
    pipeline.feed(&HISTORIES);
    secure::allow(user.principal(), &rights(&pipeline, "run"));
    connect_as(&pipeline, user);
    pipeline.run_until_caught_up();
    // Where there is something to restore, it is read from the logs.
    pipeline.lose_disk("a");
    pipeline.run_until_caught_up();
    if settings.rekeyed {
        pipeline.assert_rekeyed_and_emitted();
    } else {
        pipeline.assert_emitted(&HISTORIES);
    }
}

#[test]
fn the_pipeline_runs_by_scram_sha_256_with_the_rights_of_the_readme() {
    secure::add_scram_user("SCRAM-SHA-256");
    assert_runs("scram-sha-256", As::Scram("SCRAM-SHA-256"), &Settings::default());
}

#[test]
fn the_pipeline_runs_by_scram_sha_512_with_the_rights_of_the_readme() {
    secure::add_scram_user("SCRAM-SHA-512");
    assert_runs("scram-sha-512", As::Scram("SCRAM-SHA-512"), &Settings::default());
}

#[test]
fn the_pipeline_runs_by_plain_with_the_rights_of_the_readme() {
    assert_runs("plain", As::Plain, &Settings { rekeyed: true, ..Settings::default() });
}

#[test]
fn the_pipeline_runs_by_a_certificate_with_the_rights_of_the_readme() {
    assert_runs("certified", As::Certified, &Settings::default());
}

#[test]
fn the_topics_are_made_with_the_rights_of_the_readme_and_what_is_missing_is_named() {
    let pipeline = Pipeline::without_topics("applied", &Settings::default());
    let rights = rights(&pipeline, "topics apply");
    secure::allow(PRINCIPAL, &rights);
    connect_as(&pipeline, As::Plain);
    let apply = || pipeline.command(&["topics", "apply"]);
    let refused = |right: &Right| {
        secure::forbid(PRINCIPAL, std::slice::from_ref(right));
        let output = apply();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{right:?}: {said}");
        assert!(names(&said, right), "{right:?}: {said}");
        secure::allow(PRINCIPAL, std::slice::from_ref(right));
    };
    let all = one_of_each(&pipeline, &rights);
    let (to_make, to_mend): (Vec<&Right>, Vec<&Right>) =
        all.iter().partition(|right| right.operation == "Create");
    to_make.into_iter().take(1).for_each(refused);
    let output = apply();
    assert!(output.status.success(), "{}", text(&output));
    to_mend.into_iter().for_each(refused);
    let output = apply();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn the_other_commands_need_what_the_page_on_security_says() {
    let pipeline = Pipeline::new("commands", &Settings::default());
    connect_as(&pipeline, As::Plain);
    let right = |operation: &str, topic: &str| Right {
        operation: operation.to_owned(),
        resource: Resource::Topic(topic.to_owned()),
    };
    let to_feed = [right("Write", &pipeline.topic("ticket.raw"))];
    secure::allow(PRINCIPAL, &to_feed);
    pipeline.feed(&HISTORIES);
    secure::forbid(PRINCIPAL, &to_feed);

    let topology = Topology::load(&pipeline.topology_file()).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let to_watch: Vec<Right> = topology.output_topics().map(|topic| right("Read", topic)).collect();
    let to_run = rights(&pipeline, "run");
    secure::allow(PRINCIPAL, &to_run);
    pipeline.run_until_caught_up();
    let plan = pipeline.command(&["topics", "plan"]);
    assert!(plan.status.success(), "{}", text(&plan));
    pipeline.replay(&["--to-earliest"]);
    secure::allow(PRINCIPAL, &to_watch);
    let audit = pipeline.command(&["audit", "--state"]);
    assert!(audit.status.success(), "{}", text(&audit));

    secure::forbid(PRINCIPAL, &to_run);
    let watched = pipeline.command(&["watch", "--from", "beginning", "--until-idle", "1s"]);
    assert!(watched.status.success(), "{}", text(&watched));
    assert!(text(&watched).lines().count() > 1_000, "{}", text(&watched));
}

#[test]
fn a_run_that_lacks_one_of_its_rights_names_it_and_ends() {
    let pipeline = Pipeline::new("lacking", &Settings { rekeyed: true, ..Settings::default() });
    pipeline.append(in_every_partition("T").iter().map(|uid| opened(uid)));
    let rights = rights(&pipeline, "run");
    secure::allow(PRINCIPAL, &rights);
    connect_as(&pipeline, As::Plain);
    for right in one_of_each(&pipeline, &rights) {
        secure::forbid(PRINCIPAL, std::slice::from_ref(&right));
        let said = refused(&pipeline, &format!("{right:?}"));
        assert!(names(&said, &right), "{right:?}: {said}");
        secure::allow(PRINCIPAL, std::slice::from_ref(&right));
    }
    pipeline.run_until_caught_up();
    pipeline.assert_rekeyed_and_emitted();
}

#[test]
fn a_right_that_is_taken_from_a_running_pipeline_ends_it_and_is_named() {
    let pipeline = Pipeline::new("taken", &Settings::default());
    let uids = in_every_partition("T");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    let rights = rights(&pipeline, "run");
    secure::allow(PRINCIPAL, &rights);
    connect_as(&pipeline, As::Plain);
    let taken = |operation: &str, resource| Right { operation: operation.to_owned(), resource };
    let [changelog, ids] = pipeline.logs().map(|log| Resource::Topic(log.to_owned()));
    for (number, right) in [
        taken("Write", changelog),
        taken("Write", ids),
        taken("Write", Resource::Topic(pipeline.topic("ticket.updated"))),
        taken("Read", Resource::Topic(pipeline.topic("ticket.raw"))),
        taken("Read", Resource::Group(pipeline.group().to_owned())),
        taken("Write", Resource::TransactionalIds(format!("{}-", pipeline.group()))),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(rights.contains(&right), "{right:?} is in the README's table");
        let process = pipeline.start("a");
        pipeline.wait_until_caught_up();
        secure::forbid(PRINCIPAL, std::slice::from_ref(&right));
        pipeline.append(uids.iter().map(|uid| moved(uid, &format!("status-{number}"))));
        let ended = process.wait();
        assert_eq!(ended.status.code(), Some(1), "{right:?}: {}", ended.log.0);
        assert!(names(&ended.log.0, &right), "{right:?}: {}", ended.log.0);
        secure::allow(PRINCIPAL, std::slice::from_ref(&right));
    }
    pipeline.run_until_caught_up();
    pipeline.assert_emitted_as_expected();
}

#[test]
fn whoever_cannot_connect_is_told_why_and_what_to_do() {
    let plain = As::Plain.properties();
    let certified = As::Certified.properties();
    let secure = broker::secure();
    let by_name = secure.sasl_ssl.replace("127.0.0.1", "localhost");
    let cases = [
        ("wrong-password", &secure.sasl_ssl, plain.replace(PLAIN_PASSWORD, "wrong-3zk8"), "sasl.password"),
        ("unknown-user", &secure.sasl_ssl, plain.replace(USER, "stranger"), "sasl.username"),
        // One that the broker does not offer.
        (
            "mechanism",
            &secure.sasl_ssl,
            plain.replace("PLAIN", "OAUTHBEARER\nenable.sasl.oauthbearer.unsecure.jwt: true")
                + "sasl.oauthbearer.config: principal=pipeline\n",
            "sasl.mechanism",
        ),
        ("untrusted", &secure.sasl_ssl, plain.replace("/ca.pem", "/other-ca.pem"), "ssl.ca.location"),
        ("other-host", &by_name, plain.clone(), "name the hosts of kafka.brokers"),
        ("unencrypted", &secure.sasl_ssl, "client.id: nobody\n".to_owned(), "security.protocol"),
        (
            "no-certificate",
            &secure.ssl,
            "security.protocol: ssl\n".to_owned() + {
                let trusted = certified.lines().find(|line| line.starts_with("ssl.ca.location"));
                trusted.expect("it is there")
            },
            "ssl.certificate.location",
        ),
    ];
    // Each waits most of its time, so they do it side by side.
    std::thread::scope(|scope| {
        for (name, brokers, properties, remedy) in cases {
            scope.spawn(move || {
                let pipeline = Pipeline::without_topics(name, &Settings::default());
                connect(&pipeline, brokers, &properties);
                let said = refused(&pipeline, name);
                let last = said.lines().last().unwrap_or_default();
                assert!(last.contains("no broker answers at") && last.contains(remedy), "{name}: {said}");
                assert!(!said.contains("wrong-3zk8") && !said.contains(PLAIN_PASSWORD), "{name}: {said}");
            });
        }
    });
}

#[test]
fn no_secret_is_seen_in_logs_pages_errors_or_the_check() {
    let secrets = [PLAIN_PASSWORD, KEY_PASSWORD, "wrong-3zk8"];
    let assert_kept = |what: &str, text: &str| {
        assert!(!text.is_empty(), "{what} says something");
        for secret in secrets {
            assert!(!text.contains(secret), "{what} holds {secret}: {text}");
        }
    };
    let pipeline = Pipeline::new("secrets", &pages::served());
    secure::allow(PRINCIPAL, &rights(&pipeline, "run"));
    // All that librdkafka can tell, and a key that needs its password although nobody asks for it there.
    let certified = As::Certified.properties();
    let is_of_key = |line: &&str| line.starts_with("ssl.certificate") || line.starts_with("ssl.key");
    let key: Vec<&str> = certified.lines().filter(is_of_key).collect();
    let properties = format!("debug: all\n{}{}\n", As::Plain.properties(), key.join("\n"));
    connect(&pipeline, As::Plain.brokers(), &properties);
    let check = pipeline.command(&["config", "check"]);
    assert!(
        check.status.success() && text(&check).contains("ssl.key.password = ********"),
        "{}",
        text(&check)
    );
    assert_kept("config check", &text(&check));

    pipeline.append(in_every_partition("T").iter().map(|uid| opened(uid)));
    let process = pipeline.start_in(&[("RUST_LOG", "trace,hyper=off")], &[]);
    let pages = Pages::of(&process);
    pages.wait_until_ready();
    pipeline.wait_until_caught_up();
    for page in ["/status", "/metrics", "/readyz"] {
        assert_kept(page, &pages.get(page).1);
    }
    let log = process.end_well();
    assert!(log.0.contains("sasl.password"), "librdkafka tells its configuration");
    assert_kept("the log", &log.0);

    let refused = pipeline.start_in(&[("RUST_LOG", "trace"), ("TEST_PASSWORD", "wrong-3zk8")], &[]).wait();
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.log.0.contains("sasl.password"), "{}", refused.log.0);
    assert_kept("the refusal", &refused.log.0);

    // A mistake in the value itself.
    let mistaken = properties.replace(KEY_PASSWORD, &format!("\"{KEY_PASSWORD}\\0\""));
    connect(&pipeline, As::Plain.brokers(), &mistaken);
    let check = pipeline.command(&["config", "check"]);
    assert!(text(&check).contains("ssl.key.password"), "{}", text(&check));
    assert_kept("a mistake", &text(&check));
}
