//! The one runtime everything runs on. It is never dropped: an application's threads come and go,
//! and a runtime must not end on one of its own.

use std::any::Any;
use std::sync::OnceLock;

use superscalar_sdk as sdk;
use tokio::runtime::Runtime;
use tokio::task::{JoinError, JoinHandle};

use crate::error::WalletError;

/// Carries `work` out to its end, also when the caller goes away meanwhile.
pub(crate) async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, sdk::WalletError>> + Send + 'static,
) -> Result<T, WalletError> {
    done(runtime()?.spawn(work).await)
}

/// The same for work that is of no use to anybody else: it ends when the caller goes away.
pub(crate) async fn wait<T: Send + 'static>(
    work: impl Future<Output = Result<T, sdk::WalletError>> + Send + 'static,
) -> Result<T, WalletError> {
    let mut waiting = AbortOnDrop(runtime()?.spawn(work));
    done((&mut waiting.0).await)
}

/// The same for calls that compute or touch the disk.
pub(crate) async fn compute<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, sdk::WalletError> + Send + 'static,
) -> Result<T, WalletError> {
    done(runtime()?.spawn_blocking(work).await)
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn done<T>(ended: Result<Result<T, sdk::WalletError>, JoinError>) -> Result<T, WalletError> {
    match ended {
        Ok(done) => Ok(done?),
        Err(error) => Err(match error.try_into_panic() {
            Ok(panic) => WalletError::internal(words(&*panic)),
            Err(error) => WalletError::internal(error),
        }),
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("panicked")
}

fn runtime() -> Result<&'static Runtime, WalletError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .thread_name("superscalar")
            .enable_all()
            .build()
            .map_err(|error| error.to_string())
    });
    made.as_ref().map_err(WalletError::internal)
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::mpsc;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Polls like a foreign executor does: on a thread that knows nothing of tokio.
    fn block_on<T>(work: impl Future<Output = T>) -> T {
        struct Unpark(std::thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
        let mut work = std::pin::pin!(work);
        loop {
            match work.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(done) => return done,
                Poll::Pending => std::thread::park(),
            }
        }
    }

    fn info(error: WalletError) -> crate::ErrorInfo {
        let WalletError::Failed { info } = error;
        info
    }

    #[test]
    fn a_panic_arrives_as_an_error() {
        let word = String::from("anyone");
        let failed = block_on(finish::<()>(async move { panic!("not {word}'s fault") }));
        let failed = info(failed.unwrap_err());
        assert_eq!(failed.code, "internal");
        assert!(failed.message.contains("not anyone's fault"), "{failed:?}");
        let failed = block_on(compute::<()>(|| panic!("nor this")));
        assert_eq!(info(failed.unwrap_err()).code, "internal");
        // The runtime has survived it.
        assert_eq!(block_on(finish(async { Ok(1) })).unwrap(), 1);
    }

    #[test]
    fn waiting_ends_with_its_caller_and_work_does_not() {
        /// Tells when it is dropped.
        struct Told(mpsc::Sender<&'static str>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.send("dropped");
            }
        }
        let (tell, told) = mpsc::channel();
        let begun = tell.clone();
        let mut waiting = Box::pin(wait::<()>(async move {
            let _told = Told(tell);
            let _ = begun.send("begun");
            pending().await
        }));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        assert_eq!(told.recv().unwrap(), "begun");
        drop(waiting);
        assert_eq!(told.recv().unwrap(), "dropped");

        let (tell, told) = mpsc::channel();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let mut work = Box::pin(finish(async move {
            let _ = gone.await;
            let _ = tell.send("finished");
            Ok(())
        }));
        assert!(work.as_mut().poll(&mut context).is_pending());
        drop(work);
        go.send(()).unwrap();
        assert_eq!(told.recv().unwrap(), "finished");
    }
}
