//! `health`: asks a running pipeline whether it is ready, for probes without a shell.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use ticket_pipeline::topology::Topology;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The arguments of `health`.
#[derive(Debug, Args)]
#[command(after_help = "Exit code 0 means that it is, 1 that it is not or does not answer.

Examples:
  ticket-pipeline health
  ticket-pipeline health --live
  ticket-pipeline health --url http://127.0.0.1:9464")]
pub(crate) struct Arguments {
    /// Where its pages are; by default where the topology's http.listen says.
    #[arg(long)]
    url: Option<String>,
    /// Ask only whether it is live, not whether it is ready.
    #[arg(long)]
    live: bool,
}

/// Runs `health`.
pub(crate) fn run(topology: &Path, arguments: &Arguments) -> Result<ExitCode> {
    let url = match &arguments.url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => default_url(topology)?,
    };
    let page = format!("{url}/{}", if arguments.live { "livez" } else { "readyz" });
    let client = reqwest::blocking::Client::builder()
        .timeout(ANSWER_TIMEOUT)
        // A probe asks the process beside it, whatever the environment says of proxies.
        .no_proxy()
        .build()
        .context("make an HTTP client")?;
    let answer = client.get(&page).send().with_context(|| format!("ask {page}"))?;
    let is_sound = answer.status().is_success();
    print!("{}", answer.text().with_context(|| format!("read {page}"))?);
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn default_url(topology: &Path) -> Result<String> {
    match Topology::load(topology)?.http.listen {
        Some(address) if address.port() != 0 => Ok(format!("http://{}", reachable(address))),
        Some(_) => bail!("http.listen leaves the port to the system: name it with --url"),
        None => bail!("http.listen is off in {}: there is nothing to ask", topology.display()),
    }
}

/// What listens everywhere is asked here.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_asked_here() {
        for (listens, asked) in
            [("0.0.0.0:9464", "127.0.0.1:9464"), ("[::]:9464", "[::1]:9464"), ("10.1.2.3:80", "10.1.2.3:80")]
        {
            assert_eq!(reachable(listens.parse().unwrap()).to_string(), asked);
        }
    }
}
