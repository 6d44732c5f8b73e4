//! Applying a confinement, in the one order that works.

use std::fs;

use rustix::process::{DumpableBehavior, Pid, Signal, getppid};
use rustix::process::{set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::set_no_new_privs;

use crate::error::{SandboxError, failed};
use crate::profile::{Confinement, Layers, Mode};
use crate::report::{Layer, Outcome, Report};
use crate::{domain, identity, limits, seccomp};

impl Confinement {
    /// Confines this process, for good. It must have one thread yet.
    ///
    /// The order: limits and the bounding set while there are privileges to
    /// do so; groups, ids and capabilities; then what the change of ids would
    /// have undone, dumpability and the parent's death; then `no_new_privs`
    /// and Landlock; the filter last, as it denies all of the above.
    ///
    /// # Errors
    /// What failed. Before the first change: more than one thread, an identity
    /// that cannot be or must not be. Afterwards the process is confined in
    /// part and must end.
    pub fn enter(&self) -> Result<Report, SandboxError> {
        let layers = self.layers.within(self.mode);
        check_threads(layers)?;
        if layers.identity {
            identity::check(self.profile, self.identity)?;
        }
        let mut report = Report::new(self.profile, self.mode);
        self.lower_limits(layers, &mut report)?;
        self.drop_privileges(layers, &mut report)?;
        self.close_to_others(layers, &mut report)?;
        self.close_the_outside(layers, &mut report)?;
        Ok(report)
    }

    fn lower_limits(&self, layers: Layers, report: &mut Report) -> Result<(), SandboxError> {
        if !layers.limits {
            report.add(Layer::Limits, Outcome::SwitchedOff);
            return Ok(());
        }
        limits::apply(&self.limits)?;
        report.add(Layer::Limits, Outcome::Applied);
        Ok(())
    }

    /// Gives up groups, ids and capabilities.
    fn drop_privileges(&self, layers: Layers, report: &mut Report) -> Result<(), SandboxError> {
        let bounding = match layers.capabilities {
            true => identity::shrink_bounding_set(self.profile)?,
            false => Outcome::SwitchedOff,
        };
        let ids = match (layers.identity, self.profile.is_confined()) {
            (false, _) => Outcome::SwitchedOff,
            // A manager needs its groups: `kvm`, the socket's.
            (true, false) if self.identity.is_none() => Outcome::NotInProfile,
            (true, _) => identity::assume(self.identity)?,
        };
        report.add(Layer::Identity, ids);
        if layers.capabilities {
            identity::lower_capabilities(self.profile)?;
        }
        report.add(Layer::Capabilities, bounding);
        Ok(())
    }

    /// Sets what every change of ids resets: who may look in, and whose death
    /// is ours.
    fn close_to_others(&self, layers: Layers, report: &mut Report) -> Result<(), SandboxError> {
        report.add(Layer::Dumpable, self.set_dumpable(layers)?);
        let parent = match (layers.parent_death, self.parent) {
            (false, _) => Outcome::SwitchedOff,
            (true, None) => Outcome::NoParentNamed,
            (true, Some(parent)) => follow(parent)?,
        };
        report.add(Layer::ParentDeath, parent);
        Ok(())
    }

    fn set_dumpable(&self, layers: Layers) -> Result<Outcome, SandboxError> {
        let (behavior, outcome) = match (layers.dumpable, self.debuggable) {
            // Explicitly: a change of ids may have switched it off.
            (_, true) => (DumpableBehavior::Dumpable, Outcome::Debuggable),
            (true, false) => (DumpableBehavior::NotDumpable, Outcome::Applied),
            (false, false) => return Ok(Outcome::SwitchedOff),
        };
        set_dumpable_behavior(behavior).map_err(failed("prctl(PR_SET_DUMPABLE)"))?;
        Ok(outcome)
    }

    /// Closes the file system, the network and the kernel's other interfaces.
    fn close_the_outside(&self, layers: Layers, report: &mut Report) -> Result<(), SandboxError> {
        let privileges = match layers.no_new_privs {
            true => {
                set_no_new_privs(true).map_err(failed("prctl(PR_SET_NO_NEW_PRIVS)"))?;
                Outcome::Applied
            }
            false => Outcome::SwitchedOff,
        };
        report.add(Layer::NoNewPrivs, privileges);
        let landlock = match (layers.landlock, self.profile.is_confined()) {
            (false, _) => Outcome::SwitchedOff,
            (true, false) => Outcome::NotInProfile,
            (true, true) => domain::enter()?,
        };
        report.add(Layer::Landlock, landlock);
        let filter = match layers.seccomp {
            true => seccomp::install(self.profile, self.mode)?,
            false => Outcome::SwitchedOff,
        };
        report.add(Layer::Seccomp, filter);
        Ok(())
    }
}

/// Refuses to go on where a layer would reach one thread of several.
fn check_threads(layers: Layers) -> Result<(), SandboxError> {
    if !layers.any_per_thread() {
        return Ok(());
    }
    let threads = fs::read_dir("/proc/self/task").map_err(SandboxError::Threads)?;
    match threads.count() {
        1 => Ok(()),
        count => Err(SandboxError::SeveralThreads { count }),
    }
}

/// Asks for SIGKILL when the parent dies, then makes sure that it had not died
/// before: the request would wait for the death of whoever came after it.
fn follow(parent: Pid) -> Result<Outcome, SandboxError> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(failed("prctl(PR_SET_PDEATHSIG)"))?;
    let found = getppid();
    if found == Some(parent) {
        return Ok(Outcome::Applied);
    }
    Err(SandboxError::ParentGone {
        expected: parent.as_raw_nonzero().get(),
        found: Pid::as_raw(found),
    })
}

impl Mode {
    /// Returns whether refused system calls are really refused.
    pub fn refuses(self) -> bool {
        matches!(self, Self::Kill | Self::Errno)
    }
}
