//! Many members on one `lsp-node`: what each of them costs it, and what blocks and starts cost with
//! all of them there.
//!
//! The server is a process of its own, so that its memory and processor time are nobody else's. The
//! wallets share this process; each has its own keys, store and socket. Groups come one after the
//! other: LDK keeps about 250 peers that have no channel yet.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitcoin::{Amount, Network};
use superscalar_regtest::RegtestNode;
use superscalar_sdk::{LspUri, Mnemonic, PaymentStatus, Wallet, WalletBuilder, WordCount};
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::network::{LIMIT, chain_config, regtest_factory};
use crate::processes::LspProcess;
use crate::wire::Wire;

/// Blocks that are handled one by one, and payments made one after the other.
const TIMES: usize = 9;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Members of all groups.
    pub members: usize,
    /// From the command to build until the funding is published, the slowest group.
    pub slowest_ceremony: Duration,
    /// The same, the median.
    pub median_ceremony: Duration,
    /// What went over the sockets of the last group for its ceremony, both directions, per member.
    pub ceremony_bytes_each: u64,
    /// Processor time of the server for one group's ceremony, the median.
    pub ceremony_cpu: Duration,
    /// Memory of the server per member, in bytes.
    pub server_bytes_each: u64,
    /// Disk of the server per member, in bytes.
    pub server_disk_each: u64,
    /// Memory of a wallet, in bytes.
    pub wallet_bytes_each: u64,
    /// From a block to everything having reacted to it, the median.
    pub block: Duration,
    /// From the start of the server's process to its being ready.
    pub start: Duration,
    /// A payment between two members with all others connected, the median.
    pub payment: Duration,
}

struct Seat {
    wallet: Arc<Wallet>,
    /// What counts its bytes.
    wire: Option<Wire>,
    _directory: TempDir,
}

/// Builds `groups` factories of `size` members each, and measures.
pub async fn measure(groups: usize, size: u16) -> Scale {
    let chain = RegtestNode::new().unwrap();
    let mut lsp = LspProcess::start(&chain).unwrap();
    let address: bitcoin::Address<_> = lsp.address().unwrap().parse().unwrap();
    let script = address.assume_checked().script_pubkey();
    for _ in 0..groups {
        // 600,000 sat a member and what the tree costs.
        let coin = Amount::from_sat(650_000) * u64::from(size);
        chain.fund(&script, coin).unwrap();
    }
    block_in_place(|| lsp.sync()).unwrap();
    let members = groups * usize::from(size);
    let (server, own) = (
        memory_bytes(lsp.program().id()),
        memory_bytes(std::process::id()),
    );
    let mut seats: Vec<Seat> = Vec::new();
    let (mut walls, mut processor) = (Vec::new(), Vec::new());
    let mut ceremony_bytes = 0;
    for group in 0..groups {
        eprintln!("group {} of {groups}", group + 1);
        for _ in 0..size {
            let is_last = group + 1 == groups;
            seats.push(seat(&chain, &lsp, is_last).await);
        }
        wait("all to wait for a place", || {
            lsp.waiting().unwrap().len() >= usize::from(size)
        })
        .await;
        let carried = carried_bytes(&seats);
        let (cpu, began) = (processor_time(lsp.program().id()), Instant::now());
        let name = lsp.create_factory(&regtest_factory(size)).unwrap();
        wait("the funding to be published", || {
            lsp.factory(&name).unwrap().phase == "published"
        })
        .await;
        walls.push(began.elapsed());
        ceremony_bytes = carried_bytes(&seats) - carried;
        processor.push(processor_time(lsp.program().id()) - cpu);
        chain.mine(1).unwrap();
        block_in_place(|| lsp.sync()).unwrap();
        for seat in &seats[group * usize::from(size)..] {
            seat.wallet.sync().await.unwrap();
        }
        wait("the factory to be active", || {
            lsp.factory(&name).unwrap().active
        })
        .await;
    }
    let server_bytes_each = (memory_bytes(lsp.program().id()) - server) / members as u64;
    let wallet_bytes_each = (memory_bytes(std::process::id()) - own) / members as u64;
    let server_disk_each = disk_bytes(lsp.directory()) / members as u64;
    let mut blocks = Vec::new();
    for _ in 0..TIMES {
        chain.mine(1).unwrap();
        let began = Instant::now();
        block_in_place(|| lsp.sync()).unwrap();
        blocks.push(began.elapsed());
    }
    let invoice = receive(&seats[0].wallet, 200_000_000).await;
    block_in_place(|| lsp.pay(&invoice)).unwrap();
    let mut payments = Vec::new();
    for _ in 0..TIMES {
        let invoice = receive(&seats[members - 1].wallet, 1_000_000).await;
        let began = Instant::now();
        pay(&seats[0].wallet, &invoice).await;
        payments.push(began.elapsed());
    }
    block_in_place(|| lsp.stop()).unwrap();
    let began = Instant::now();
    block_in_place(|| lsp.restart()).unwrap();
    let start = began.elapsed();
    assert_eq!(lsp.channels().unwrap().len(), members);
    for seat in &seats {
        seat.wallet.stop().await;
    }
    Scale {
        members,
        slowest_ceremony: walls.iter().copied().max().unwrap_or_default(),
        median_ceremony: median(walls),
        ceremony_bytes_each: ceremony_bytes / u64::from(size),
        ceremony_cpu: median(processor),
        server_bytes_each,
        server_disk_each,
        wallet_bytes_each,
        block: median(blocks),
        start,
        payment: median(payments),
    }
}

async fn seat(chain: &RegtestNode, lsp: &LspProcess, is_counted: bool) -> Seat {
    let directory = TempDir::new().unwrap();
    let (mut uri, mut wire) = (lsp.uri.clone(), None);
    if is_counted {
        let (id, address) = lsp.uri.split_once('@').unwrap();
        let counting = Wire::to(address.parse().unwrap()).await;
        uri = format!("{id}@{}", counting.address);
        wire = Some(counting);
    }
    let uri: LspUri = uri.parse().unwrap();
    let mnemonic = Mnemonic::generate(WordCount::Twelve).unwrap();
    let wallet = WalletBuilder::new(Network::Regtest, mnemonic)
        .storage_dir(directory.path().into())
        .chain_source(chain_config(chain))
        .lsp(uri)
        // Blocks are looked for when a test says so: a thousand wallets would ask all the time.
        .poll_interval(Duration::from_secs(3_600))
        .start()
        .await
        .unwrap();
    wallet.factories().join(500_000).await.unwrap();
    Seat {
        wallet,
        wire,
        _directory: directory,
    }
}

fn carried_bytes(seats: &[Seat]) -> u64 {
    let wires = seats.iter().filter_map(|seat| seat.wire.as_ref());
    let each = wires.map(|wire| wire.to_lsp.carried_bytes() + wire.to_member.carried_bytes());
    each.sum()
}

async fn receive(wallet: &Wallet, amount_msat: u64) -> String {
    let began = Instant::now();
    loop {
        match wallet.lightning().receive(Some(amount_msat), "", 600).await {
            Ok(invoice) => return invoice,
            Err(error) => assert!(began.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Pays as soon as the money for it has come.
async fn pay(wallet: &Wallet, invoice: &str) {
    let began = Instant::now();
    let hash = loop {
        match wallet.lightning().send(invoice, None).await {
            Ok(hash) => break hash,
            Err(error) => assert!(began.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    wait("a payment to succeed", || {
        let payment = wallet.lightning().payment(&hash).unwrap().unwrap();
        assert_ne!(payment.status, PaymentStatus::Failed);
        payment.status == PaymentStatus::Succeeded
    })
    .await;
}

async fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !block_in_place(&mut condition) {
        assert!(Instant::now() < until, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// What a process holds in memory.
fn memory_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.unwrap().split_whitespace().next().unwrap();
    words.parse::<u64>().unwrap() * 1_024
}

/// Processor time of a process so far, all threads, user and system.
pub fn processor_time(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    // Linux counts in hundredths of a second for every program.
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|it| it.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(10 * ticks)
}

fn disk_bytes(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap();
    let sizes = entries.map(|entry| {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => disk_bytes(&entry.path()),
            false => entry.metadata().unwrap().len(),
        }
    });
    sizes.sum()
}
