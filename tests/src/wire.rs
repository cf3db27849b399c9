//! A wire between a wallet and its LSP that a test can stop: bytes pass in both directions, or
//! wait until they are let through.
//!
//! What always holds: no byte is changed, lost or reordered; a wire that is held stays held for
//! the connections after this one.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::network::LIMIT;

/// What `update_add_htlc` and a `commitment_signed` with one HTLC take (BOLT2, BOLT8).
pub const ADD_AND_COMMIT_BYTES: usize = 1_452 + 34 + COMMIT_BYTES;
/// What a `commitment_signed` with one HTLC takes.
pub const COMMIT_BYTES: usize = 164 + 34;
/// What `revoke_and_ack` takes.
pub const REVOKE_BYTES: usize = 99 + 34;

/// Both directions.
pub struct Wire {
    /// Where the wallet connects to.
    pub address: SocketAddr,
    /// What the wallet says.
    pub to_lsp: Arc<Direction>,
    /// What the LSP says.
    pub to_member: Arc<Direction>,
    target: Arc<Mutex<SocketAddr>>,
    hang_ups: watch::Sender<()>,
    accepting: tokio::task::AbortHandle,
}

/// One direction.
pub struct Direction {
    gate: watch::Sender<Gate>,
    held_bytes: AtomicUsize,
    carried_bytes: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Gate {
    closed: bool,
    /// Counts how often what was held was let through.
    releases: u64,
}

impl Wire {
    /// A wire to `target` through which everything passes.
    pub async fn to(target: SocketAddr) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to_lsp, to_member) = (Direction::open(), Direction::open());
        let target = Arc::new(Mutex::new(target));
        let hang_ups = watch::Sender::new(());
        let hung_up = hang_ups.clone();
        let ends = (
            Arc::clone(&to_lsp),
            Arc::clone(&to_member),
            Arc::clone(&target),
        );
        let accepting = tokio::spawn(async move {
            let (to_lsp, to_member, target) = ends;
            while let Ok((member, _)) = listener.accept().await {
                let target = *target.lock().unwrap_or_else(PoisonError::into_inner);
                let Ok(lsp) = TcpStream::connect(target).await else {
                    continue;
                };
                // LDK writes small messages and waits for the answer.
                let _ = (member.set_nodelay(true), lsp.set_nodelay(true));
                let (member_read, member_write) = member.into_split();
                let (lsp_read, lsp_write) = lsp.into_split();
                let forth = Arc::clone(&to_lsp).carry(member_read, lsp_write);
                let back = Arc::clone(&to_member).carry(lsp_read, member_write);
                let mut hung_up = hung_up.subscribe();
                tokio::spawn(async move {
                    // When one side hangs up, the other is hung up too.
                    tokio::select! { () = forth => {}, () = back => {}, _ = hung_up.changed() => {} }
                });
            }
        });
        Wire {
            address,
            to_lsp,
            to_member,
            target,
            hang_ups,
            accepting: accepting.abort_handle(),
        }
    }

    /// Lets connections from now on go elsewhere.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Breaks the connections there are. The wallet connects again by itself.
    pub fn hang_up(&self) {
        self.hang_ups.send_replace(());
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Direction {
    fn open() -> Arc<Direction> {
        Arc::new(Direction {
            gate: watch::Sender::new(Gate::default()),
            held_bytes: AtomicUsize::new(0),
            carried_bytes: AtomicU64::new(0),
        })
    }

    /// Holds every byte from now on.
    pub fn hold(&self) {
        self.gate.send_modify(|gate| gate.closed = true);
    }

    /// Lets everything pass again, what was held first.
    pub fn pass(&self) {
        self.gate.send_modify(|gate| gate.closed = false);
    }

    /// Lets through what is held now, and goes on holding.
    pub fn release(&self) {
        self.gate.send_modify(|gate| gate.releases += 1);
    }

    /// Waits until `bytes` are held.
    pub async fn until_held(&self, bytes: usize) {
        let until = Instant::now() + LIMIT;
        while self.held_bytes() < bytes {
            assert!(Instant::now() < until, "{bytes} bytes never came");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets through what is held, once that is `bytes`, and goes on holding.
    pub async fn release_once(&self, bytes: usize) {
        self.until_held(bytes).await;
        self.release();
        let until = Instant::now() + LIMIT;
        while self.held_bytes() >= bytes {
            assert!(Instant::now() < until, "{bytes} bytes never left");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// How many bytes are held.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::SeqCst)
    }

    /// How many bytes have passed.
    pub fn carried_bytes(&self) -> u64 {
        self.carried_bytes.load(Ordering::SeqCst)
    }

    async fn carry(self: Arc<Self>, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut gate = self.gate.subscribe();
        let mut released = gate.borrow_and_update().releases;
        let mut held = Vec::new();
        let mut chunk = vec![0; 65_536];
        self.held_bytes.store(0, Ordering::SeqCst);
        loop {
            tokio::select! {
                // What a release is to let through was counted before it.
                biased;
                _ = gate.changed() => {}
                read = from.read(&mut chunk) => match read {
                    Ok(bytes) if bytes > 0 => held.extend_from_slice(&chunk[..bytes]),
                    _ => return,
                },
            }
            let now = *gate.borrow_and_update();
            if !now.closed || now.releases > released {
                released = now.releases;
                if to.write_all(&held).await.is_err() {
                    return;
                }
                self.carried_bytes
                    .fetch_add(held.len() as u64, Ordering::SeqCst);
                held.clear();
            }
            self.held_bytes.store(held.len(), Ordering::SeqCst);
        }
    }
}
