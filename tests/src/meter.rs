//! A TCP relay that counts bytes, to measure what really crosses a socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Relays every connection to one address and counts both directions together.
pub struct Meter {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Meter {
    /// Listens on a free port for connections to `target`.
    pub async fn start(target: String) -> std::io::Result<Meter> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let bytes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&bytes);
        let task = tokio::spawn(async move {
            while let Ok((inbound, _)) = listener.accept().await {
                let (target, counter) = (target.clone(), Arc::clone(&counter));
                tokio::spawn(async move {
                    if let Ok(outbound) = TcpStream::connect(&target).await {
                        relay(inbound, outbound, counter).await;
                    }
                });
            }
        });
        Ok(Meter {
            address,
            bytes,
            task,
        })
    }

    /// Where to connect instead of the target.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes relayed so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(inbound: TcpStream, outbound: TcpStream, counter: Arc<AtomicU64>) {
    for stream in [&inbound, &outbound] {
        // The relay must not add Nagle's delays to what it measures.
        if stream.set_nodelay(true).is_err() {
            return;
        }
    }
    let (mut read_in, mut write_in) = inbound.into_split();
    let (mut read_out, mut write_out) = outbound.into_split();
    tokio::select! {
        () = copy(&mut read_in, &mut write_out, &counter) => {}
        () = copy(&mut read_out, &mut write_in, &counter) => {}
    }
}

async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    counter: &AtomicU64,
) {
    let mut buffer = vec![0; 16_384];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                counter.fetch_add(count as u64, Ordering::Relaxed);
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
