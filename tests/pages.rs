//! The pages about a running pipeline: what probes and people see of it, and
//! when.

use std::net::TcpListener;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::Value;
use ticket_pipeline::lines::RawLine;

use crate::pipeline::{Pipeline, Settings};
use crate::process::Process;
use crate::story::{in_every_partition, moved, opened};
use crate::wait;

/// The pages of a process.
pub(crate) struct Pages {
    pub(crate) url: String,
}

impl Pages {
    /// As soon as they are served.
    pub(crate) fn of(process: &Process) -> Pages {
        let address = wait::until("the pages are served", || process.log().word("serving", "address"));
        Pages { url: format!("http://{address}") }
    }

    /// A page's code and text.
    pub(crate) fn get(&self, page: &str) -> (u16, String) {
        let client = reqwest::blocking::Client::builder().timeout(wait::PATIENCE).no_proxy().build();
        let answer = client.expect("a client").get(format!("{}{page}", self.url)).send();
        let answer = answer.unwrap_or_else(|error| panic!("get {page}: {error}"));
        (answer.status().as_u16(), answer.text().expect("a page is text"))
    }

    pub(crate) fn wait_until_ready(&self) {
        wait::until("the pipeline is ready", || (self.get("/readyz").0 == 200).then_some(()));
    }

    pub(crate) fn status(&self) -> Value {
        let (code, text) = self.get("/status");
        assert_eq!(code, 200);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// Those of all workers.
fn tasks_of(status: &Value) -> Vec<Value> {
    let workers = status["workers"].as_array().expect("a list").iter();
    workers.flat_map(|worker| worker["tasks"].as_array().expect("a list").clone()).collect()
}

/// Any free port.
pub(crate) fn served() -> Settings {
    Settings { http: "127.0.0.1:0", ..Settings::default() }
}

#[test]
fn a_run_becomes_ready_and_tells_its_workers_tasks_positions_and_lag() {
    let pipeline = Pipeline::new("pages", &served());
    let uids = in_every_partition("T");
    pipeline.append(uids.iter().map(|uid| opened(uid)));
    let process = pipeline.start("a");
    let pages = Pages::of(&process);
    pages.wait_until_ready();
    assert_eq!(pages.get("/livez"), (200, "live\n".to_owned()));
    let health = pipeline.command(&["health", "--url", &pages.url]);
    assert_eq!((health.status.code(), health.stdout.as_slice()), (Some(0), &b"ready\n"[..]));
    pipeline.wait_until_caught_up();

    let status = wait::until("the lag is known and nothing", || {
        let status = pages.status();
        let tasks = tasks_of(&status);
        // Partitions may still be on their way to the worker that joined last.
        let all_run = tasks.len() == 4 && status["ready"] == true;
        (all_run && tasks.iter().all(|task| task["lag"] == 0)).then_some(status)
    });
    assert_eq!((&status["ready"], &status["live"]), (&Value::from(true), &Value::from(true)));
    assert_eq!(status["instance"], "a");
    assert_eq!(status["records"]["in"], 4);
    assert_eq!(status["workers"].as_array().map(Vec::len), Some(2));
    let mut tasks = tasks_of(&status);
    tasks.sort_by_key(|task| task["partition"].as_i64());
    assert_eq!(tasks.len(), 4);
    for (partition, task) in tasks.iter().enumerate() {
        assert_eq!(task["partition"], partition);
        assert_eq!(task["state"], "running");
        assert_eq!(task["position"], 1);
        assert_eq!(task["end"], 1);
    }
    // A busy machine may be a trouble: then the log tells of it, too.
    let log = process.log();
    let troubles = ["the producer cannot begin yet", "transaction aborted", "building the clients anew"];
    let had_trouble = troubles.iter().any(|what| !log.lines(what).is_empty());
    for worker in status["workers"].as_array().expect("a list") {
        assert_eq!(worker["state"], "working");
        assert!(worker["lastTrouble"].is_null() || had_trouble, "{worker}\n{}", log.0);
        let committed = worker["commits"].as_u64() > Some(0);
        assert_eq!(worker["lastCommitAt"].is_string(), committed, "{worker}");
    }
    process.end_well();
}

#[test]
fn nothing_lags_where_all_that_was_re_keyed_is_read() {
    // One worker of each stage: no other that joins the group ends a transaction, whose marker would move the ends.
    let pipeline = Pipeline::new("re-keyed-lag", &Settings { rekeyed: true, workers: 1, ..served() });
    // To one partition nothing comes.
    pipeline.append(in_every_partition("T").iter().skip(1).map(|uid| opened(uid)));
    let process = pipeline.start("a");
    let pages = Pages::of(&process);
    wait::until("no partition of either topic lags", || {
        let status = pages.status();
        let tasks = tasks_of(&status);
        let read: i64 = tasks.iter().filter_map(|task| task["position"].as_i64()).sum();
        let none_lags = tasks.iter().all(|task| task["lag"] == 0 && task["end"] == task["position"]);
        (tasks.len() == 8 && read == 6 && none_lags).then_some(())
    });
    // Behind each record stands the marker of its transaction, which nobody will read.
    let internal = format!("{}-rekeyed", pipeline.group());
    let mut ends: Vec<i64> = (0..4).map(|partition| pipeline.true_end(&internal, partition)).collect();
    ends.sort_unstable();
    assert_eq!(ends, [0, 2, 2, 2]);
    process.end_well();
}

#[test]
fn nothing_lags_where_only_markers_and_what_was_aborted_are_left_of_the_raw_topic() {
    let pipeline = Pipeline::new("raw-transactions", &served());
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", crate::broker::address())
        .set("transactional.id", pipeline.topic("platform"))
        // Longer than a test waits for anything: no broker is to end one of these.
        .set("transaction.timeout.ms", "600000")
        .create()
        .expect("a producer");
    producer.init_transactions(wait::PATIENCE).expect("transactions");
    let send = |status: &str| {
        producer.begin_transaction().expect("a transaction");
        for uid in in_every_partition("T") {
            let RawLine { partition, key, value, .. } = moved(&uid, status);
            let (key, value) = (key.expect("a key"), value.expect("a value"));
            let topic = pipeline.topic("ticket.raw");
            let record = BaseRecord::to(&topic).partition(partition).key(&key).payload(&value);
            producer.send(record).map_err(|(error, _)| error).expect("it is taken");
        }
        producer.flush(wait::PATIENCE).expect("it arrives");
    };
    send("open");
    producer.commit_transaction(wait::PATIENCE).expect("it is committed");
    send("closed");
    producer.abort_transaction(wait::PATIENCE).expect("it is aborted");

    let process = pipeline.start("a");
    let pages = Pages::of(&process);
    wait::until("every record is read, and no partition lags in records or time", || {
        let tasks = tasks_of(&pages.status());
        let read = tasks.iter().filter(|task| task["position"] == 1).count();
        let level = tasks.iter().filter(|task| task["lag"] == 0 && task["lagSeconds"] == 0.0).count();
        (tasks.len() == 4 && read == 4 && level == 4).then_some(())
    });
    for partition in 0..4 {
        assert_eq!(pipeline.true_end(&pipeline.topic("ticket.raw"), partition), 4);
    }
    // What is not decided may become records, and nobody can read on.
    send("waiting");
    let lag_everywhere = |lag: i64| {
        let tasks = tasks_of(&pages.status());
        (tasks.len() == 4 && tasks.iter().all(|task| task["lag"] == lag && task["end"] == 1 + lag))
            .then_some(())
    };
    wait::until("an open transaction is lag in every partition", || lag_everywhere(4));
    let seen = |at_least: f64| {
        let tasks = tasks_of(&pages.status());
        tasks.iter().all(|task| task["lagSeconds"].as_f64() > Some(at_least)).then_some(())
    };
    wait::until("and stays it, however long nothing comes", || seen(5.0));
    producer.abort_transaction(wait::PATIENCE).expect("it is aborted");
    wait::until("and is none when it is aborted", || lag_everywhere(0));
    process.end_well();
}

#[test]
fn before_kafka_answers_a_run_is_live_and_not_ready() {
    let pipeline = Pipeline::without_topics("unanswered", &served());
    // It takes connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = silent.local_addr().expect("it listens").to_string();
    pipeline.rewrite(|text| text.replace(crate::broker::address(), &address));
    let health = |url: &str, arguments: &[&str]| {
        let output = pipeline.command(&[&["health", "--url", url], arguments].concat());
        output.status.code()
    };
    // A run gives up after some seconds: each look is at one of its own.
    let looks: [&dyn Fn(&Pages); 5] = [
        &|pages| assert_eq!(pages.get("/livez").0, 200),
        &|pages| {
            let not_ready = "not ready\nthe workers are not started yet\n".to_owned();
            assert_eq!(pages.get("/readyz"), (503, not_ready));
        },
        &|pages| assert_eq!(pages.status()["ready"], false),
        &|pages| assert_eq!(health(&pages.url, &[]), Some(1)),
        &|pages| assert_eq!(health(&pages.url, &["--live"]), Some(0)),
    ];
    for look in looks {
        let process = pipeline.start("a");
        look(&Pages::of(&process));
        process.kill();
    }
    assert_eq!(health("http://127.0.0.1:1", &["--live"]), Some(1), "nobody answers");
}

#[test]
fn a_port_in_use_ends_the_run_before_it_connects() {
    let pipeline = Pipeline::without_topics("port-in-use", &Settings::default());
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it listens").to_string();
    // Nobody listens there: who connects would wait, and speak of it.
    pipeline.rewrite(|text| {
        let text = text.replace("listen: off", &format!("listen: {address}"));
        text.replace(crate::broker::address(), "127.0.0.1:1")
    });
    let ended = pipeline.start("a").wait();
    assert_eq!(ended.status.code(), Some(1));
    let said = &ended.log.0;
    assert!(said.contains(&format!("serve the pages at {address}: another process listens there")), "{said}");
    assert!(said.contains("http.listen") && !said.contains("127.0.0.1:1:"), "{said}");
}
