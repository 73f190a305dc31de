//! One real Kafka for the whole binary, on a free port, its data in a temporary
//! folder; it is gone when the tests have ended, however they end.

use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::secure;

/// Where the search for a free port begins.
const PORTS: std::ops::Range<u32> = 29_600..29_700;

static BROKER: LazyLock<Broker> = LazyLock::new(Broker::up);

struct Broker {
    address: String,
    secure: Secure,
    folder: PathBuf,
    /// When this process ends, in whatever way, its end of the pipe closes.
    watchdog: Mutex<ChildStdin>,
}

/// The same broker's listeners that are not open to everybody: see `secure.rs`.
pub(crate) struct Secure {
    /// Encrypted; a user says who it is by a password.
    pub(crate) sasl_ssl: String,
    /// Encrypted; a client says who it is by a certificate.
    pub(crate) ssl: String,
    /// Where the certificates are.
    pub(crate) certificates: PathBuf,
}

/// It reads the processes that are to end with this one, then takes all down.
/// A number alone is no proof that a process is ours, its folder is.
const WATCHDOG: &str = r#"
pids=
while read -r pid; do pids="$pids $pid"; done
for pid in $pids; do
    case $(ps -o args= -p "$pid" 2>/dev/null) in *"$FOLDER"*) kill -KILL "$pid" ;; esac
done
"$KAFKA" down --port "$PORT" --data "$FOLDER/kafka" --purge
rm -rf "$FOLDER"
"#;

/// The address of the broker, which is started at the first call.
///
/// # Panics
/// Where it cannot be started: a guarantee that was not looked at does not hold.
pub(crate) fn address() -> &'static str {
    &BROKER.address
}

pub(crate) fn secure() -> &'static Secure {
    &BROKER.secure
}

/// A folder that is gone when the tests have ended.
pub(crate) fn folder() -> &'static Path {
    &BROKER.folder
}

/// Has a process ended with this one.
pub(crate) fn ends_with_us(child: &Child) {
    let mut watchdog = BROKER.watchdog.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(watchdog, "{}", child.id()).expect("the watchdog reads until we end");
}

/// One of Kafka's own tools.
pub(crate) fn tool(arguments: &[&str]) {
    let output = try_tool(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The same where it may go wrong.
pub(crate) fn try_tool(arguments: &[&str]) -> Output {
    Command::new(script())
        .arg("tool")
        .args(arguments)
        .env("KAFKA_BROKERS", address())
        .output()
        .expect("scripts/kafka can be started")
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/kafka")
}

impl Broker {
    #[allow(clippy::zombie_processes, reason = "the watchdog outlives us by design: it cleans up behind us")]
    fn up() -> Broker {
        let kafka = script();
        let folder =
            tempfile::Builder::new().prefix("guarantees-").tempdir().expect("a folder can be made").keep();
        let [port, sasl_ssl, ssl] = free_ports().map(|port| port.to_string());
        let certificates = folder.join("certificates");
        let secure = Secure {
            sasl_ssl: format!("127.0.0.1:{sasl_ssl}"),
            ssl: format!("127.0.0.1:{ssl}"),
            certificates: certificates.clone(),
        };
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG])
            .env("FOLDER", &folder)
            .env("KAFKA", &kafka)
            .env("PORT", &port)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C ends the tests and not what cleans up behind them.
            .process_group(0)
            .spawn()
            .expect("sh can be started");
        let watchdog = watchdog.stdin.take().expect("its input is ours");
        let up = Command::new(&kafka)
            .args(["up", "--port", &port, "--data"])
            .arg(folder.join("kafka"))
            .args(["--listener", &format!("SASL_SSL://{}", secure.sasl_ssl)])
            .args(["--listener", &format!("SSL://{}", secure.ssl)])
            .args(secure::properties(&certificates).iter().flat_map(|property| ["--property", property]))
            .env("KAFKA_HEAP_OPTS", "-Xms256m -Xmx1g")
            .output()
            .expect("scripts/kafka can be started");
        assert!(up.status.success(), "scripts/kafka up: {}", String::from_utf8_lossy(&up.stderr));
        Broker { address: format!("127.0.0.1:{port}"), secure, folder, watchdog: Mutex::new(watchdog) }
    }
}

/// Two runs at a time begin at different places.
fn free_ports<const COUNT: usize>() -> [u32; COUNT] {
    let is_free = |port: &u32| TcpListener::bind(format!("127.0.0.1:{port}")).is_ok();
    let length = PORTS.end - PORTS.start;
    let ports = (0..length).map(|step| PORTS.start + (std::process::id() + step) % length).filter(is_free);
    let ports: Vec<u32> = ports.take(COUNT).collect();
    ports.try_into().unwrap_or_else(|_| panic!("fewer than {COUNT} of the ports {PORTS:?} are free"))
}
