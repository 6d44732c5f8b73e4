//! How requests reach the manager, from other threads.

use std::rc::Rc;
use std::sync::Arc;

use mkvmm_base::{Diagnose, InstanceName, chain};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::control::error::ControlError;
use crate::event_log::EventKind;
use crate::manager::Manager;
use crate::registry::Registry;

/// Requests that may be under way at once. A client that leaves may leave one
/// behind.
const REQUESTS: usize = 1024;
/// Beyond those, so many more that end something: there must be a way out.
const ENDINGS: usize = 128;

/// A request on its way: what is left of it is to be called.
type Job = Box<dyn FnOnce(&Rc<Manager>) + Send>;

/// What a change is called in the event log if it is refused.
#[derive(Debug, Clone)]
pub struct Change {
    /// What was asked for, for instance `load`.
    pub action: &'static str,
    /// The instance it is about.
    pub instance: Option<InstanceName>,
}

/// The sending end; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    jobs: mpsc::UnboundedSender<Job>,
    room: Arc<Semaphore>,
    room_to_end: Arc<Semaphore>,
}

/// The receiving end, for the thread that owns the manager.
#[derive(Debug)]
pub struct Requests {
    jobs: mpsc::UnboundedReceiver<Job>,
}

/// Makes the two ends.
pub fn channel() -> (Client, Requests) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let client = Client {
        jobs: sender,
        room: Arc::new(Semaphore::new(REQUESTS)),
        room_to_end: Arc::new(Semaphore::new(ENDINGS)),
    };
    (client, Requests { jobs: receiver })
}

impl Requests {
    /// Carries out requests as they come, until every client is gone. To be
    /// run in a `LocalSet`.
    pub async fn serve(mut self, manager: Rc<Manager>) {
        while let Some(job) = self.jobs.recv().await {
            job(&manager);
        }
    }
}

impl Client {
    /// Looks at the manager's instances and ledger.
    ///
    /// # Errors
    /// What `look` says, or [`ControlError::Ending`].
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Registry) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        self.ask(move |manager| look(&manager.registry())).await
    }

    /// Asks the manager what needs more than its registry, and no time.
    ///
    /// # Errors
    /// What `ask` says, or [`ControlError::Ending`].
    pub async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Rc<Manager>) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let place = self.place(None)?;
        let (reply, replied) = oneshot::channel();
        self.send(Box::new(move |manager| {
            let _place = place;
            // A client that has gone needs no reply.
            let _ = reply.send(ask(manager));
        }))?;
        replied.await.unwrap_or(Err(ControlError::Ending))
    }

    /// Has the manager change something, in a task of its own that goes on if
    /// the client does not wait. A refusal is an event.
    ///
    /// # Errors
    /// What the change says, or [`ControlError::Ending`].
    pub async fn change<
        T: Send + 'static,
        F: Future<Output = Result<T, ControlError>> + 'static,
    >(
        &self,
        name: Change,
        change: impl FnOnce(Rc<Manager>) -> F + Send + 'static,
    ) -> Result<T, ControlError> {
        let prepare = |_manager| std::future::ready(Ok(()));
        let change = move |manager, ()| change(manager);
        self.prepare_and_change(name, prepare, change).await
    }

    /// The same for a change that has to be prepared, for instance by reading
    /// images: a preparation ends when its client goes, and changes nothing.
    ///
    /// # Errors
    /// What the preparation or the change says, or [`ControlError::Ending`].
    pub async fn prepare_and_change<P, T, F, G>(
        &self,
        name: Change,
        prepare: impl FnOnce(Rc<Manager>) -> F + Send + 'static,
        change: impl FnOnce(Rc<Manager>, P) -> G + Send + 'static,
    ) -> Result<T, ControlError>
    where
        P: 'static,
        T: Send + 'static,
        F: Future<Output = Result<P, ControlError>> + 'static,
        G: Future<Output = Result<T, ControlError>> + 'static,
    {
        let place = self.place(Some(&name))?;
        let (mut reply, replied) = oneshot::channel();
        self.send(Box::new(move |manager| {
            let manager = Rc::clone(manager);
            tokio::task::spawn_local(async move {
                let _place = place;
                let prepared = tokio::select! {
                    prepared = prepare(Rc::clone(&manager)) => prepared,
                    () = reply.closed() => return,
                };
                let result = match prepared {
                    Ok(prepared) => change(Rc::clone(&manager), prepared).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = &result {
                    note_refusal(&manager, name, error);
                }
                // A client that has gone needs no reply.
                let _ = reply.send(result);
            });
        }))?;
        replied.await.unwrap_or(Err(ControlError::Ending))
    }

    /// Takes a place among the requests under way.
    fn place(&self, change: Option<&Change>) -> Result<OwnedSemaphorePermit, ControlError> {
        let ends = change.is_some_and(|change| matches!(change.action, "kill" | "delete"));
        let place = Arc::clone(&self.room).try_acquire_owned();
        let place = place.or_else(|full| match ends {
            true => Arc::clone(&self.room_to_end).try_acquire_owned(),
            false => Err(full),
        });
        place.or(Err(ControlError::Requests { limit: REQUESTS }))
    }

    fn send(&self, job: Job) -> Result<(), ControlError> {
        self.jobs.send(job).or(Err(ControlError::Ending))
    }
}

fn note_refusal(manager: &Manager, change: Change, error: &ControlError) {
    let kind = EventKind::Refused {
        action: change.action.to_owned(),
        code: error.class(),
        message: chain(error),
    };
    let instance = change.instance.map(|name| name.to_string());
    manager.log().push(instance, kind);
}
