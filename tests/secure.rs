//! What the broker needs for its secure listeners, and what Kafka's ACLs allow
//! there: certificates, users, rights. Over its plain listener, where the other
//! tests are at home, everything is allowed.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::broker;
use crate::wait;

/// The user, by whichever mechanism, and its principal in Kafka's ACLs.
pub(crate) const USER: &str = "pipeline";
pub(crate) const PRINCIPAL: &str = "User:pipeline";
/// That of a client's certificate.
pub(crate) const CERTIFIED: &str = "User:CN=certified";

pub(crate) const PLAIN_PASSWORD: &str = "plain-9wq2";
pub(crate) const SCRAM_PASSWORD: &str = "scram-4hx7";
pub(crate) const KEY_PASSWORD: &str = "key-6tv1";

/// The broker's properties, and the certificates that they name: `ca.pem` for
/// whom to trust, `certified.crt` and `.key` of a client, `other-ca.pem` of an
/// authority that has signed nothing.
pub(crate) fn properties(folder: &Path) -> Vec<String> {
    std::fs::create_dir_all(folder).expect("the folder of tests can be written to");
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        command.current_dir(folder).args(["req", "-x509", "-days", "2", "-newkey", "ec"]);
        command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1"]).args(arguments);
        let output = command.output().expect("openssl can be started");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let by_ca = ["-CA", "ca.pem", "-CAkey", "ca.key"];
    let key = format!("pass:{KEY_PASSWORD}");
    openssl(&["-nodes", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem"]);
    openssl(&["-nodes", "-subj", "/CN=other", "-keyout", "other-ca.key", "-out", "other-ca.pem"]);
    let broker = ["-nodes", "-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"];
    openssl(&[&by_ca[..], &broker, &["-keyout", "broker.key", "-out", "broker.crt"]].concat());
    let client = ["-passout", &key, "-subj", "/CN=certified"];
    openssl(&[&by_ca[..], &client, &["-keyout", "certified.key", "-out", "certified.crt"]].concat());
    let read = |name| std::fs::read_to_string(folder.join(name)).expect("openssl has written it");
    std::fs::write(folder.join("broker.pem"), read("broker.key") + &read("broker.crt"))
        .expect("the folder of tests can be written to");

    let folder = folder.display();
    let logins = "org.apache.kafka.common.security";
    vec![
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned(),
        "super.users=User:ANONYMOUS".to_owned(),
        "ssl.keystore.type=PEM".to_owned(),
        format!("ssl.keystore.location={folder}/broker.pem"),
        "ssl.truststore.type=PEM".to_owned(),
        format!("ssl.truststore.location={folder}/ca.pem"),
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512".to_owned(),
        "listener.name.ssl.ssl.client.auth=required".to_owned(),
        format!(
            "listener.name.sasl_ssl.plain.sasl.jaas.config={logins}.plain.PlainLoginModule required \
             user_{USER}=\"{PLAIN_PASSWORD}\";"
        ),
        format!(
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={logins}.scram.ScramLoginModule required;"
        ),
        format!(
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={logins}.scram.ScramLoginModule required;"
        ),
    ]
}

/// Makes the user known for one of SCRAM's mechanisms, which keep their users apart.
pub(crate) fn add_scram_user(mechanism: &str) {
    let password = format!("{mechanism}=[password={SCRAM_PASSWORD}]");
    let user = ["--entity-type", "users", "--entity-name", USER];
    broker::tool(&[&["configs", "--alter"], &user[..], &["--add-config", &password]].concat());
}

/// One operation on one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Right {
    /// Kafka's own word for it.
    pub(crate) operation: String,
    pub(crate) resource: Resource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resource {
    Topic(String),
    Group(String),
    /// All that begin so.
    TransactionalIds(String),
}

/// Allows a principal something.
pub(crate) fn allow(principal: &str, rights: &[Right]) {
    change(CREATE_ACLS, principal, rights);
    wait::until("the ACLs are there", || {
        rights.last().is_none_or(|right| is_allowed(principal, right)).then_some(())
    });
}

/// Does not allow it any more.
pub(crate) fn forbid(principal: &str, rights: &[Right]) {
    change(DELETE_ACLS, principal, rights);
    wait::until("the ACLs are gone", || {
        rights.last().is_none_or(|right| !is_allowed(principal, right)).then_some(())
    });
}

// --- Kafka's protocol ------------------------------------------------------
//
// Its own tool takes two seconds for each call, and a call for each right.

const DESCRIBE_ACLS: i16 = 29;
const CREATE_ACLS: i16 = 30;
const DELETE_ACLS: i16 = 31;
/// Of the three requests: the last whose form is a plain one.
const VERSION: i16 = 1;

fn change(request: i16, principal: &str, rights: &[Right]) {
    let mut body = (rights.len() as i32).to_be_bytes().to_vec();
    for right in rights {
        body.extend(binding(principal, right));
    }
    let answer = ask(request, &body);
    // Of each, an error code stands first; those of the others would be the same.
    assert_eq!(answer[8..10], [0, 0], "{rights:?}: {answer:?}");
}

fn is_allowed(principal: &str, right: &Right) -> bool {
    let answer = ask(DESCRIBE_ACLS, &binding(principal, right));
    assert_eq!(answer[4..8], [0, 0, 0, 0], "{right:?}: {answer:?}");
    answer[8..12] != [0, 0, 0, 0]
}

/// As a thing to be made, and as a filter that finds it: both look alike.
fn binding(principal: &str, Right { operation, resource }: &Right) -> Vec<u8> {
    const ALLOW: u8 = 3;
    const LITERAL: u8 = 3;
    const PREFIXED: u8 = 4;
    let (kind, name, pattern) = match resource {
        Resource::Topic(name) => (2, name, LITERAL),
        Resource::Group(name) => (3, name, LITERAL),
        Resource::TransactionalIds(prefix) => (5, prefix, PREFIXED),
    };
    let operation = match operation.as_str() {
        "Read" => 3,
        "Write" => 4,
        "Create" => 5,
        "Delete" => 6,
        "Describe" => 8,
        "DescribeConfigs" => 10,
        "AlterConfigs" => 11,
        other => panic!("{other} is no operation"),
    };
    [&[kind][..], &string(name), &[pattern], &string(principal), &string("*"), &[operation, ALLOW]].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as i16).to_be_bytes()[..], text.as_bytes()].concat()
}

/// What follows the answer's correlation id.
fn ask(request: i16, body: &[u8]) -> Vec<u8> {
    let mut connection = TcpStream::connect(broker::address()).expect("the broker listens");
    let head =
        [&request.to_be_bytes()[..], &VERSION.to_be_bytes(), &7_i32.to_be_bytes(), &string("tests")].concat();
    let length = (head.len() + body.len()) as i32;
    let bytes = [&length.to_be_bytes()[..], &head, body].concat();
    connection.write_all(&bytes).expect("the broker reads");
    let mut length = [0; 4];
    connection.read_exact(&mut length).expect("the broker answers");
    let mut answer = vec![0; i32::from_be_bytes(length) as usize];
    connection.read_exact(&mut answer).expect("the broker answers in full");
    assert_eq!(answer[..4], 7_i32.to_be_bytes());
    answer.split_off(4)
}
