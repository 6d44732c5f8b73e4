//! The client that waits for each answer.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use mkvmm_api::apply::{Applied, ApplyBody};
use mkvmm_api::bodies::{KillBody, PlanBody, StartBody};
use mkvmm_api::channel::{Channel, ChannelBody};
use mkvmm_api::plan::Plan;
use mkvmm_api::pool::{Audit, Health, Pool, Version};
use mkvmm_api::{ImagesSpec, Instance, InstanceSpec};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call::{Call, escape};
use crate::connection::{ask, ask_for, block_on};
use crate::error::ClientError;
use crate::events::{RECONNECT, Since, newest};
use crate::socket;
use crate::streams::{Console, EventStream, Held, Output};

/// A client of the VMM that listens at one socket.
///
/// Each function is a request and waits for its answer. All of them return
/// [`ClientError::Connect`] if no VMM answers, and [`ClientError::Refused`] with the
/// VMM's reason if it refuses; a refused request has changed nothing.
///
/// Not for use inside of a runtime of tokio: there, [`connection`](crate::connection) has
/// the same as asynchronous functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Returns a client of the VMM at `socket`. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Returns a client of the VMM at the usual place: see [`socket::find`].
    #[must_use]
    pub fn find() -> Self {
        Self::new(socket::find())
    }

    /// Returns the path of the socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Sends any request, and returns the text of the response.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn text(&self, call: Call<'_>) -> Result<String, ClientError> {
        block_on(ask(&self.socket, call))
    }

    /// Sends any request, and returns the object of the response.
    ///
    /// # Errors
    /// Returns a [`ClientError`]; [`ClientError::Json`] if the response is not a `T`.
    pub fn send<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, ClientError> {
        block_on(ask_for(&self.socket, call))
    }

    /// Returns the version of the program that serves, and of the API.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn version(&self) -> Result<Version, ClientError> {
        self.send(Call::get("/v1/version"))
    }

    /// Returns whether the VMM has what it needs.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn health(&self) -> Result<Health, ClientError> {
        self.send(Call::get("/v1/health"))
    }

    /// Returns the pool's size and free memory.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn pool(&self) -> Result<Pool, ClientError> {
        self.send(Call::get("/v1/pool"))
    }

    /// Has the VMM check that no ranges overlap and that none is lost.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn audit(&self) -> Result<Audit, ClientError> {
        self.send(Call::get("/v1/audit"))
    }

    /// Returns the metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn metrics(&self) -> Result<String, ClientError> {
        self.text(Call::get("/v1/metrics"))
    }

    /// Returns all instances.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn instances(&self) -> Result<Vec<Instance>, ClientError> {
        self.send(Call::get("/v1/instances"))
    }

    /// Returns the instance `name`.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn instance(&self, name: &str) -> Result<Instance, ClientError> {
        self.send(Call::of_instance("GET", name, ""))
    }

    /// Creates an instance, and loads its images if it has any.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn create(&self, spec: &InstanceSpec) -> Result<Instance, ClientError> {
        self.send(Call::new("POST", "/v1/instances").with(spec)?)
    }

    /// Creates an instance that has to be leased at once: see [`Client::lease`].
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn create_leased(&self, spec: &InstanceSpec) -> Result<Instance, ClientError> {
        self.send(Call::new("POST", "/v1/instances?lease=true").with(spec)?)
    }

    /// Loads the images of an instance, replacing earlier ones.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn load(&self, name: &str, images: &ImagesSpec) -> Result<Instance, ClientError> {
        self.verb(name, "/load", images)
    }

    /// Boots an instance.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn start(&self, name: &str) -> Result<Instance, ClientError> {
        self.verb(name, "/start", &StartBody::default())
    }

    /// Pauses the vCPUs of an instance.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn pause(&self, name: &str) -> Result<Instance, ClientError> {
        self.send(Call::of_instance("POST", name, "/pause"))
    }

    /// Continues a paused instance.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn resume(&self, name: &str) -> Result<Instance, ClientError> {
        self.send(Call::of_instance("POST", name, "/resume"))
    }

    /// Ends an instance: by its power button, and by force once `grace` is over. Without
    /// any, it is ended at once.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn kill(&self, name: &str, grace: Duration) -> Result<Instance, ClientError> {
        let body = KillBody {
            force: grace.is_zero(),
            grace_ms: Some(u32::try_from(grace.as_millis()).unwrap_or(u32::MAX)),
        };
        self.verb(name, "/kill", &body)
    }

    /// Removes the images from the memory of an instance.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn unload(&self, name: &str) -> Result<Instance, ClientError> {
        self.send(Call::of_instance("POST", name, "/unload"))
    }

    /// Deletes an instance, and frees its memory.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn delete(&self, name: &str) -> Result<Instance, ClientError> {
        self.send(Call::of_instance("DELETE", name, ""))
    }

    /// Waits until an instance has come to its end: one that its policy restarts has not.
    ///
    /// It goes on when the VMM is upgraded.
    ///
    /// # Errors
    /// Returns a [`ClientError`], also if it is deleted meanwhile.
    pub fn wait(&self, name: &str) -> Result<Instance, ClientError> {
        loop {
            // From before the first look, so that no change falls in between.
            let since = block_on(newest(&self.socket))?;
            let mut events = self.events(Since::Event(since), Some(name))?;
            loop {
                let instance = self.instance(name)?;
                if instance.has_ended() {
                    return Ok(instance);
                }
                match events.next() {
                    Some(Ok(_)) => {}
                    Some(Err(error @ ClientError::Json(_))) => return Err(error),
                    // It ends with the manager; without another one, the next look says so.
                    None | Some(Err(_)) => break,
                }
            }
            thread::sleep(RECONNECT);
        }
    }

    /// Returns where instances and channels would be placed, or why they do not fit.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn plan(&self, fleet: &PlanBody) -> Result<Plan, ClientError> {
        self.send(Call::new("POST", "/v1/plan").with(fleet)?)
    }

    /// Makes the pool be what a fleet says: all of it or nothing.
    ///
    /// # Errors
    /// Returns a [`ClientError`]; the pool is then as it was.
    pub fn apply(&self, fleet: &ApplyBody) -> Result<Applied, ClientError> {
        self.send(Call::new("POST", "/v1/apply").with(fleet)?)
    }

    /// Returns all channels.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn channels(&self) -> Result<Vec<Channel>, ClientError> {
        self.send(Call::get("/v1/channels"))
    }

    /// Creates a channel between instances.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn create_channel(&self, channel: &ChannelBody) -> Result<Channel, ClientError> {
        self.send(Call::new("POST", "/v1/channels").with(channel)?)
    }

    /// Deletes a channel that no guest uses.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn delete_channel(&self, name: &str) -> Result<Channel, ClientError> {
        let path = format!("/v1/channels/{}", escape(name));
        self.send(Call::new("DELETE", path))
    }

    /// Returns what an instance has printed, as far as the VMM has kept it.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn output(&self, name: &str) -> Result<String, ClientError> {
        self.text(Call::of_instance("GET", name, "/output"))
    }

    /// Returns what an instance has printed and prints, until it is deleted.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn follow_output(&self, name: &str) -> Result<Output, ClientError> {
        Output::open(&self.socket, name, true)
    }

    /// Returns the events of the instance `name`, or of all, and waits for further ones:
    /// the stream ends with the VMM, and when that is upgraded.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn events(&self, since: Since, name: Option<&str>) -> Result<EventStream, ClientError> {
        EventStream::open(&self.socket, since, name, true)
    }

    /// Attaches to the serial port of an instance.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn console(&self, name: &str) -> Result<Console, ClientError> {
        Console::attach(&self.socket, name, 0)
    }

    /// Takes the lease of an instance from [`Client::create_leased`]: the instance exists
    /// as long as what this returns, which has to be renewed within `limit` if one is
    /// given.
    ///
    /// # Errors
    /// Returns a [`ClientError`].
    pub fn lease(&self, name: &str, limit: Option<Duration>) -> Result<Held, ClientError> {
        Held::take(&self.socket, name, limit)
    }

    fn verb(&self, name: &str, rest: &str, body: &impl Serialize) -> Result<Instance, ClientError> {
        self.send(Call::of_instance("POST", name, rest).with(body)?)
    }
}
