//! Passes requests from other threads to the manager.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use mkvmm_base::{Diagnose, InstanceName, causes, chain};
use tokio::sync::{mpsc, oneshot};

use crate::control::error::ControlError;
use crate::control::shares::{Room, Taken};
use crate::event_log::EventKind;
use crate::manager::Manager;
use crate::registry::Registry;

tokio::task_local! {
    /// The user of the client that is being answered, if that has no rights to the
    /// instances of others.
    static USER: Option<u32>;
}

/// Answers a client. What is asked of the manager meanwhile is asked for `user`, who
/// has no rights to the instances of others; `None` has all.
pub(super) async fn answer_for<F: Future>(user: Option<u32>, answer: F) -> F::Output {
    USER.scope(user, answer).await
}

/// Returns the user of the client that is being answered, unless that has all rights.
pub(super) fn user() -> Option<u32> {
    USER.try_with(|user| *user).ok().flatten()
}

/// Has the registry be used for a user, until this is dropped.
struct Used<'a> {
    manager: &'a Manager,
    before: Option<u32>,
}

impl<'a> Used<'a> {
    fn by(manager: &'a Manager, user: Option<u32>) -> Self {
        let before = manager.registry().use_for(user);
        Self { manager, before }
    }
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        self.manager.registry().use_for(self.before);
    }
}

/// Carries out `work` with the rights of `user`, as often as it goes on: others have
/// theirs meanwhile.
async fn with_rights<F: Future>(manager: &Manager, user: Option<u32>, work: F) -> F::Output {
    let mut work = pin!(work);
    poll_fn(|context| {
        let _used = Used::by(manager, user);
        work.as_mut().poll(context)
    })
    .await
}

/// The maximum number of requests in progress, of which each user has a share. A client
/// that disconnects may leave one running.
const REQUESTS: usize = 1024;
/// The number of additional requests that end something: it must always be
/// possible to free resources.
const ENDINGS: usize = 128;

/// A queued request: a function to be called by the manager's thread.
type Job = Box<dyn FnOnce(&Rc<Manager>) + Send>;

/// The description of a change, for the event log if it is refused.
#[derive(Debug, Clone)]
pub struct Change {
    /// The requested action, for example `load`.
    pub action: &'static str,
    /// The instance that is affected.
    pub instance: Option<InstanceName>,
}

/// The sending end, which is cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    jobs: mpsc::UnboundedSender<Job>,
    room: Arc<Room>,
    room_to_end: Arc<Room>,
}

/// The receiving end, for the thread that owns the manager.
#[derive(Debug)]
pub struct Requests {
    jobs: mpsc::UnboundedReceiver<Job>,
}

/// Creates both ends.
pub fn channel() -> (Client, Requests) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let client = Client {
        jobs: sender,
        room: Room::new(REQUESTS),
        room_to_end: Room::new(ENDINGS),
    };
    (client, Requests { jobs: receiver })
}

impl Requests {
    /// Carries out requests as they arrive, until all clients are dropped. Must
    /// run in a `LocalSet`.
    pub async fn serve(mut self, manager: Rc<Manager>) {
        while let Some(job) = self.jobs.recv().await {
            job(&manager);
        }
    }
}

impl Client {
    /// Reads the manager's instances and ledger.
    ///
    /// # Errors
    /// Returns the error of `look`, or [`ControlError::Ending`].
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Registry) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        self.ask(move |manager| look(&manager.registry())).await
    }

    /// Calls a quick function that needs the manager and not only its registry.
    ///
    /// # Errors
    /// Returns the error of `ask`, or [`ControlError::Ending`].
    pub async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Rc<Manager>) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let user = user();
        let place = self.place(user, None)?;
        let (reply, replied) = oneshot::channel();
        self.send(Box::new(move |manager| {
            let (_place, _used) = (place, Used::by(manager, user));
            // If the client has disconnected, the reply is not needed.
            let _ = reply.send(ask(manager));
        }))?;
        replied.await.unwrap_or(Err(ControlError::Ending))
    }

    /// Has the manager change something, in a separate task that continues even
    /// if the client disconnects. A refusal becomes an event.
    ///
    /// # Errors
    /// Returns the error of the change, or [`ControlError::Ending`].
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

    /// Has the manager change something after a preparation, such as reading
    /// images. The preparation changes nothing and is cancelled if its client
    /// disconnects.
    ///
    /// # Errors
    /// Returns the error of the preparation or of the change, or
    /// [`ControlError::Ending`].
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
        let user = user();
        let place = self.place(user, Some(&name))?;
        let (mut reply, replied) = oneshot::channel();
        self.send(Box::new(move |manager| {
            let manager = Rc::clone(manager);
            tokio::task::spawn_local(async move {
                let _place = place;
                let prepare = async { prepare(Rc::clone(&manager)).await };
                let prepared = tokio::select! {
                    prepared = with_rights(&manager, user, prepare) => prepared,
                    () = reply.closed() => return,
                };
                let result = match prepared {
                    Ok(prepared) => {
                        let change = async { change(Rc::clone(&manager), prepared).await };
                        with_rights(&manager, user, change).await
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = &result {
                    note_refusal(&manager, name, error);
                }
                // If the client has disconnected, the reply is not needed.
                let _ = reply.send(result);
            });
        }))?;
        replied.await.unwrap_or(Err(ControlError::Ending))
    }

    /// Takes room for a request of `user`.
    fn place(&self, user: Option<u32>, change: Option<&Change>) -> Result<Taken, ControlError> {
        let ends = change.is_some_and(|change| matches!(change.action, "kill" | "delete"));
        let place = self.room.take(user).or_else(|limit| match ends {
            true => self.room_to_end.take(user),
            false => Err(limit),
        });
        place.map_err(|limit| ControlError::Requests { limit })
    }

    fn send(&self, job: Job) -> Result<(), ControlError> {
        self.jobs.send(job).or(Err(ControlError::Ending))
    }
}

fn note_refusal(manager: &Manager, change: Change, error: &ControlError) {
    for (number, cause) in causes(error).iter().enumerate().skip(1) {
        log::debug!("{} refused, cause {number}: {cause}", change.action);
    }
    let kind = EventKind::Refused {
        action: change.action.to_owned(),
        code: error.class(),
        message: chain(error),
    };
    let instance = change.instance.map(|name| name.to_string());
    manager.log().push(instance, kind);
}
