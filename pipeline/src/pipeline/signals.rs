//! SIGTERM and SIGINT: the first asks for a clean end, the second for an end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::worker::Orders;

/// Orders a stop at the first signal; at the second the process exits at once.
///
/// # Errors
/// Where the signals cannot be listened to.
pub(super) fn stop_on_signal(orders: Arc<Orders>) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("listen to signals")?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        let listen = |kind| signal(kind).context("listen to signals");
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?)
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                either(&mut terminate, &mut interrupt).await;
                tracing::info!("stopping: committing what is in hand (again to exit at once)");
                orders.stop.store(true, Ordering::Relaxed);
                let code = either(&mut terminate, &mut interrupt).await;
                std::process::exit(128 + code);
            });
        })
        .context("listen to signals")?;
    Ok(())
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> i32 {
    std::future::poll_fn(|context| {
        if terminate.poll_recv(context).is_ready() {
            return std::task::Poll::Ready(SignalKind::terminate().as_raw_value());
        }
        interrupt.poll_recv(context).map(|_| SignalKind::interrupt().as_raw_value())
    })
    .await
}
