//! `run --on SOCKET`: one guest in a pool that is served, as the command of a batch job.
//!
//! The command creates, boots and deletes the guest, and prints its console meanwhile.
//! The guest exists only as long as the command does: its connection is the lease of
//! the instance, so that nothing is left however the command ends. Signals to the
//! command are for the guest: SIGTERM presses its power button, SIGTSTP pauses it
//! before the command itself stops, and SIGCONT resumes it.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mkvmm_api::bodies::{KillBody, StartBody};
use mkvmm_api::instance::Instance;
use mkvmm_api::{InstanceSpec, MINE, SpecError};
use mkvmm_base::affinity::CpuSet;
use mkvmm_base::state::{EndReason, State};
use mkvmm_base::{Class, Diagnose, InstanceName, chain};
use mkvmm_manager::run::Outcome;
use rustix::process::{Signal as Number, getpid, kill_process};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cli::HostIoError;
use crate::cli::console::{Written, write_stdout};
use crate::error::{CliError, ExitStatus};
use mkvmm_client::connection::{Body, ask, ask_for, block_on, open};
use mkvmm_client::events;
use mkvmm_client::lease::Lease;
use mkvmm_client::{Call, ClientError, Since};

/// How long a name that is still in use is waited for, since what an earlier job has left
/// is being cleaned, and a VMM that takes no more clients.
const IN_USE: Duration = Duration::from_secs(10);
/// The pause between two attempts.
const RETRY: Duration = Duration::from_millis(100);
/// How often a lease is renewed within its time.
const RENEWALS: u32 = 3;
/// The length at which a line is split.
const LINE_MAX: usize = 4096;

/// A reason why a guest in a served pool cannot be run to its end.
#[derive(Debug, thiserror::Error)]
pub enum OnError {
    /// Not one guest was described.
    #[error("--on runs one guest, and there are {count}")]
    Guests {
        /// The number of guests.
        count: usize,
    },
    /// The VMM has too much to do, and goes on having it.
    #[error("the VMM takes no more clients now")]
    Overload(#[source] ClientError),
    /// The instance is gone, or the VMM.
    #[error("the VMM has ended, or has ended {name}")]
    Lost {
        /// The name of the instance.
        name: InstanceName,
    },
}

impl Diagnose for OnError {
    fn class(&self) -> Class {
        match self {
            Self::Guests { .. } => Class::Invalid,
            Self::Overload(_) | Self::Lost { .. } => Class::Lost,
        }
    }
}

/// What is to be run, and how.
#[derive(Debug)]
pub struct Job {
    /// The socket of the VMM.
    pub socket: PathBuf,
    /// The time between the power button and SIGKILL.
    pub grace: Duration,
    /// The time within which the lease has to be renewed, if it has to.
    pub lease: Option<Duration>,
    /// The command that has to succeed for that.
    pub renew: Option<String>,
}

/// Runs a guest to its end.
///
/// # Errors
/// Returns a [`CliError`]; the guest is gone, or will be in a moment.
pub fn run(job: &Job, specs: Vec<InstanceSpec>) -> Result<(ExitStatus, Option<Outcome>), CliError> {
    let count = specs.len();
    let mut specs = specs.into_iter();
    let (Some(mut spec), None) = (specs.next(), specs.next()) else {
        return Err(OnError::Guests { count }.into());
    };
    let name = spec.name.clone();
    let name = name.ok_or(SpecError::Missing { key: "name" })?;
    // The VMM has another working directory than its clients.
    spec.rebase(&env::current_dir().map_err(HostIoError::WorkingDirectory)?);
    // The guest's use is that of the job: charged to it, and limited like it.
    let may_be_outside = spec.cgroup.is_none();
    spec.cgroup.get_or_insert_with(|| MINE.into());
    if spec.cpus_affinity.is_none() {
        spec.cpus_affinity = CpuSet::of_process();
    }
    block_on(async {
        let mut signals = Signals::listen().map_err(HostIoError::Signals)?;
        tokio::select! {
            created = create(&job.socket, spec, &name, may_be_outside) => created?,
            status = signals.end() => return Ok((status, None)),
        }
        let mut guest = Guest::lease(job, &name).await?;
        guest.run(&mut signals).await
    })
}

/// Creates the instance, which is to be leased; if it `may_be_outside`, also where it
/// cannot be in the cgroup of this command.
async fn create(
    socket: &Path,
    mut spec: InstanceSpec,
    name: &InstanceName,
    may_be_outside: bool,
) -> Result<(), CliError> {
    let end = Instant::now() + IN_USE;
    loop {
        let call = Call::new("POST", "/v1/instances?lease=true".to_owned()).with(&spec)?;
        match ask(socket, call).await {
            Err(error)
                if matches!(error.class(), Class::Exists | Class::Overload)
                    && Instant::now() < end =>
            {
                log::debug!("{name}: {}", chain(&error));
                tokio::time::sleep(RETRY).await;
            }
            Err(error) if error.class() == Class::Overload => {
                return Err(OnError::Overload(error).into());
            }
            Err(error) if error.class() == Class::Cgroup && may_be_outside => {
                if spec.cgroup.take().is_none() {
                    return Err(error.into());
                }
                let why = chain(&error);
                log::warn!("the guest is outside the cgroup of this command: {why}");
            }
            created => return Ok(created.map(drop)?),
        }
    }
}

/// The signals that the command gets.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    stop: Signal,
    go_on: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy)]
enum Asked {
    End(ExitStatus),
    Pause,
    Resume,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let raw = |number: Number| signal(SignalKind::from_raw(number.as_raw()));
        Ok(Self {
            terminate: raw(Number::TERM)?,
            interrupt: raw(Number::INT)?,
            stop: raw(Number::TSTP)?,
            go_on: raw(Number::CONT)?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End(ExitStatus::Terminated),
            _ = self.interrupt.recv() => Asked::End(ExitStatus::Interrupted),
            _ = self.stop.recv() => Asked::Pause,
            _ = self.go_on.recv() => Asked::Resume,
        }
    }

    /// Waits until the command is to end; returns the status.
    async fn end(&mut self) -> ExitStatus {
        loop {
            match self.next().await {
                Asked::End(status) => return status,
                // There is no guest yet.
                Asked::Pause => stop_oneself(),
                Asked::Resume => {}
            }
        }
    }
}

/// Stops this process, as SIGTSTP does where nobody handles it.
fn stop_oneself() {
    if let Err(error) = kill_process(getpid(), Number::STOP) {
        log::error!("this process cannot be stopped: {error}");
    }
}

/// The guest of a job.
struct Guest<'a> {
    job: &'a Job,
    name: &'a InstanceName,
    lease: Lease,
    /// True if it was paused by a signal.
    is_paused: bool,
}

impl<'a> Guest<'a> {
    /// Takes the lease of the instance.
    async fn lease(job: &'a Job, name: &'a InstanceName) -> Result<Self, CliError> {
        Ok(Self {
            job,
            name,
            lease: Lease::take(&job.socket, name.as_str(), job.lease).await?,
            is_paused: false,
        })
    }

    /// Boots the guest and runs it to its end.
    async fn run(
        &mut self,
        signals: &mut Signals,
    ) -> Result<(ExitStatus, Option<Outcome>), CliError> {
        let socket = &self.job.socket;
        let call = events::request(Since::Now, Some(self.name.as_str()), true);
        let events = open(socket, call).await?;
        let output = open(socket, self.call("GET", "/output?follow=true")).await?;
        let (lines, written) = write_stdout()?;
        let console = tokio::spawn(print(output, self.name.to_string(), lines.clone()));
        let asked = self.supervise(events, signals, &lines).await?;
        drop(lines);
        let instance = self.look().await?;
        let text = ask(socket, self.call("GET", "/output")).await?;
        // Its console is closed by that. Without it, the end of the lease does the same.
        if let Err(error) = ask(socket, self.call("DELETE", "")).await {
            log::error!("{}", chain(&error));
            console.abort();
        }
        last_lines(console, written, signals).await?;
        let outcome = outcome(self.name, &instance, text);
        let status = match (asked, outcome.reason) {
            (Some(status), _) => status,
            // By somebody else.
            (None, EndReason::Killed) => ExitStatus::Terminated,
            (None, EndReason::Vmm) => ExitStatus::Lost,
            (None, reason) if reason.state() == State::Failed => ExitStatus::GuestFailed,
            (None, _) => ExitStatus::Done,
        };
        Ok((status, Some(outcome)))
    }

    /// Boots the guest, and waits until it has ended. Returns the status if a signal
    /// has asked for its end.
    async fn supervise(
        &mut self,
        mut events: Body,
        signals: &mut Signals,
        lines: &mpsc::Sender<Vec<u8>>,
    ) -> Result<Option<ExitStatus>, CliError> {
        let mut asked = None;
        let mut begun = tokio::spawn(self.request("/start", Some(&StartBody::default()))?);
        let mut is_begun = false;
        let mut ending: Option<JoinHandle<Result<String, ClientError>>> = None;
        let mut renewal = self.renewal();
        loop {
            let is_ending = ending.is_some();
            let ended = async {
                match &mut ending {
                    Some(ending) => ending.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                started = &mut begun, if !is_begun => {
                    is_begun = true;
                    match started {
                        Ok(Err(error)) if asked.is_none() => return Err(error.into()),
                        // Its end has begun meanwhile, and is waited for.
                        Ok(Err(_)) => {}
                        // The event of its end may have come before.
                        _ => if self.has_ended().await? {
                            return Ok(asked);
                        },
                    }
                }
                killed = ended => {
                    if let Ok(killed) = killed {
                        killed?;
                    }
                    return Ok(asked);
                }
                arrived = events.next() => {
                    let is_over = matches!(arrived, Ok(None) | Err(_));
                    if is_over || (is_begun && self.has_ended().await?) {
                        return match is_over {
                            true => Err(self.lost()),
                            false => Ok(asked),
                        };
                    }
                }
                () = self.lease.ended() => return Err(self.lost()),
                is_renewed = &mut renewal => {
                    // Without that the VMM ends the guest in time.
                    if is_renewed.unwrap_or(false) {
                        self.lease.renew().await.map_err(|_gone| self.lost())?;
                    }
                    renewal = self.renewal();
                }
                () = lines.closed(), if !is_ending => {
                    asked = Some(ExitStatus::Failed);
                    ending = Some(self.end(Duration::ZERO)?);
                }
                signal = signals.next() => match signal {
                    Asked::End(status) => {
                        // A second signal does not wait.
                        let grace = match asked.replace(status) {
                            None => self.job.grace,
                            Some(_) => Duration::ZERO,
                        };
                        ending = Some(self.end(grace)?);
                    }
                    Asked::Pause => {
                        self.pause().await?;
                        // Whoever wants it to go on may have said so meanwhile.
                        let goes_on = tokio::select! {
                            biased;
                            _ = signals.go_on.recv() => true,
                            () = std::future::ready(()) => false,
                        };
                        match goes_on {
                            true => self.resume().await?,
                            false => stop_oneself(),
                        }
                    }
                    Asked::Resume => self.resume().await?,
                },
            }
        }
    }

    fn lost(&self) -> CliError {
        let name = self.name.clone();
        OnError::Lost { name }.into()
    }

    fn call<'b>(&self, method: &'b str, rest: &str) -> Call<'b> {
        Call::of_instance(method, self.name.as_str(), rest)
    }

    /// Sends a request about the instance.
    fn request<B: Serialize>(
        &self,
        rest: &str,
        body: Option<&B>,
    ) -> Result<impl Future<Output = Result<String, ClientError>> + use<B>, ClientError> {
        let mut call = self.call("POST", rest);
        if let Some(body) = body {
            call = call.with(body)?;
        }
        let socket = self.job.socket.clone();
        Ok(async move { ask(&socket, call).await })
    }

    /// Returns the instance as it is.
    async fn look(&self) -> Result<Instance, CliError> {
        Ok(ask_for(&self.job.socket, self.call("GET", "")).await?)
    }

    async fn has_ended(&self) -> Result<bool, CliError> {
        match self.look().await {
            Ok(instance) => Ok(instance.has_ended()),
            Err(error) if error.status() == ExitStatus::WrongState => Err(self.lost()),
            Err(error) => Err(error),
        }
    }

    /// Begins to end the guest.
    fn end(&self, grace: Duration) -> Result<JoinHandle<Result<String, ClientError>>, ClientError> {
        let body = KillBody {
            force: grace.is_zero(),
            grace_ms: u32::try_from(grace.as_millis()).ok(),
        };
        Ok(tokio::spawn(self.request("/kill", Some(&body))?))
    }

    /// Pauses the guest.
    async fn pause(&mut self) -> Result<(), CliError> {
        match self.request("/pause", None::<&()>)?.await {
            Ok(_) => self.is_paused = true,
            // It does not run yet, or has ended.
            Err(error) if error.class() == Class::WrongState => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Resumes the guest, once its lease is renewed: it may run elsewhere by now.
    async fn resume(&mut self) -> Result<(), CliError> {
        if !std::mem::take(&mut self.is_paused) {
            return Ok(());
        }
        if self.job.lease.is_some() {
            let renew = self.job.renew.clone();
            let renewed = tokio::task::spawn_blocking(move || may_renew(renew.as_deref())).await;
            if !renewed.unwrap_or(false) {
                return Err(self.lost());
            }
            self.lease.renew().await.map_err(|_gone| self.lost())?;
        }
        match self.request("/resume", None::<&()>)?.await {
            Err(error) if error.class() != Class::WrongState => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Begins to find out whether the lease is to be renewed next time; never returns if
    /// that is not needed.
    fn renewal(&self) -> JoinHandle<bool> {
        let (limit, renew) = (self.job.lease, self.job.renew.clone());
        tokio::spawn(async move {
            let Some(limit) = limit else {
                return std::future::pending().await;
            };
            tokio::time::sleep(limit / RENEWALS).await;
            let renewed = tokio::task::spawn_blocking(move || may_renew(renew.as_deref()));
            renewed.await.unwrap_or(false)
        })
    }
}

/// Returns whether a lease may be renewed: if the command says so.
fn may_renew(command: Option<&str>) -> bool {
    let Some(command) = command else {
        return true;
    };
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null());
    match shell.stdout(Stdio::null()).status() {
        Ok(status) if status.success() => true,
        Ok(status) => {
            log::warn!("the lease is not renewed: `{command}`: {status}");
            false
        }
        Err(error) => {
            log::warn!("the lease is not renewed: {error}");
            false
        }
    }
}

/// Prints what the guest prints, each line with its name, until its console is closed.
async fn print(mut output: Body, name: String, lines: mpsc::Sender<Vec<u8>>) {
    let mut line = Vec::new();
    while let Ok(Some(bytes)) = output.next().await {
        for &byte in &bytes {
            match byte {
                b'\r' => continue,
                b'\n' => {}
                _ => line.push(byte),
            }
            if (byte == b'\n' || line.len() == LINE_MAX) && !say(&name, &mut line, &lines).await {
                return;
            }
        }
    }
    if !line.is_empty() {
        say(&name, &mut line, &lines).await;
    }
}

/// Prints a line; returns whether anybody reads it.
async fn say(name: &str, line: &mut Vec<u8>, lines: &mpsc::Sender<Vec<u8>>) -> bool {
    let text = [name.as_bytes(), &b": "[..], &line[..], &b"\n"[..]].concat();
    line.clear();
    lines.send(text).await.is_ok()
}

/// Waits until the last lines are printed, unless a signal says not to.
async fn last_lines(
    console: JoinHandle<()>,
    written: Written,
    signals: &mut Signals,
) -> Result<(), CliError> {
    let printed = async {
        // It ends with the console.
        let _ = console.await;
        written.await
    };
    tokio::select! {
        printed = printed => match printed {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(HostIoError::Output(error).into())
            }
            _ => Ok(()),
        },
        _ = signals.end() => Ok(()),
    }
}

fn outcome(name: &InstanceName, instance: &Instance, text: String) -> Outcome {
    let at = |stage: &str| instance.timeline.get(stage).copied().unwrap_or_default();
    Outcome {
        name: name.clone(),
        // Without a reason it never ran.
        reason: instance.reason.unwrap_or(EndReason::Killed),
        violations: instance.violations,
        lifetime: Duration::from_nanos(at("ended").saturating_sub(at("exec"))),
        timeline: Arc::default(),
        boots: instance.boots,
        cpu_time: Duration::from_micros(instance.cpu_us),
        console_tail: text.into_bytes(),
    }
}
