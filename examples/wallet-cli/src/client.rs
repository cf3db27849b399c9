//! A command's connection to the running wallet.

use std::io::ErrorKind;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;
use superscalar_sdk::{Event, EventPage, StoredEvent};
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::daemon::socket_path;
use crate::protocol::{self, Failure, LineError, MAX_RESPONSE_BYTES, Request, Response};

/// Events asked for at once.
const PAGE: u32 = 1_000;

/// An open connection.
pub(crate) struct Client {
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

impl Client {
    /// Connects to the wallet that runs in `dir`.
    pub(crate) async fn connect(dir: &Path) -> Result<Client, Failure> {
        let path = socket_path(dir);
        let stream = UnixStream::connect(&path).await.map_err(|error| {
            let message = format!("no wallet runs in {}: {error}", dir.display());
            match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                    Failure::new("not_running", message).hint("start it with `run`")
                }
                _ => Failure::new("not_reachable", message),
            }
        })?;
        let (from, to) = stream.into_split();
        let from = BufReader::new(from);
        Ok(Client { from, to })
    }

    /// Asks, and waits for the answer.
    pub(crate) async fn call(&mut self, request: &Request) -> Result<Value, Failure> {
        match self.exchange(request).await {
            Ok(Some(Response::Done(value))) => Ok(value),
            Ok(Some(Response::Failed(failure))) => Err(failure),
            Ok(None) => Err(Failure::new("stopped", "the wallet stopped")),
            Err(error) => Err(Failure::new("connection_lost", error)),
        }
    }

    /// [`call`](Self::call) with an answer of a known kind.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &mut self,
        request: &Request,
    ) -> Result<T, Failure> {
        let value = self.call(request).await?;
        serde_json::from_value(value).map_err(|error| {
            Failure::new("unexpected_answer", error).hint("does an older version run?")
        })
    }

    /// Cursor of the newest event, 0 before the first.
    pub(crate) async fn newest_event(&mut self) -> Result<u64, Failure> {
        let mut after = 0;
        loop {
            let page = self.events(after, 0).await?;
            match page.last() {
                Some(last) => after = last.cursor,
                None => return Ok(after),
            }
        }
    }

    /// Events behind `after`; waits up to `wait_ms` for the first.
    pub(crate) async fn events(
        &mut self,
        after: u64,
        wait_ms: u64,
    ) -> Result<Vec<StoredEvent>, Failure> {
        let request = Request::Events {
            after,
            limit: PAGE,
            wait_ms,
        };
        Ok(self.ask::<EventPage>(&request).await?.events)
    }

    /// The events behind `after` one by one, `None` whenever a second passes without one.
    pub(crate) async fn next_event(&mut self, after: &mut u64) -> Result<Option<Event>, Failure> {
        let request = Request::Events {
            after: *after,
            limit: 1,
            wait_ms: 1_000,
        };
        let page: EventPage = self.ask(&request).await?;
        let next = page.events.into_iter().next();
        Ok(next.map(|stored| {
            *after = stored.cursor;
            stored.event
        }))
    }

    async fn exchange(&mut self, request: &Request) -> Result<Option<Response>, LineError> {
        protocol::write(&mut self.to, request).await?;
        protocol::read(&mut self.from, MAX_RESPONSE_BYTES).await
    }
}
