//! Applies a confinement, in the only order that works.

use std::fs;

use rustix::process::{DumpableBehavior, Pid, Signal, getppid};
use rustix::process::{set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::set_no_new_privs;

use crate::error::{SandboxError, failed};
use crate::profile::{Confinement, Layers, Mode, Profile};
use crate::report::{Layer, Outcome, Report};
use crate::{domain, identity, limits, seccomp};

impl Confinement {
    /// Confines this process permanently. It must have only one thread.
    ///
    /// The order: limits and the bounding set while the process has the
    /// privileges to change them; groups, IDs and capabilities; then what
    /// changing the IDs would have reset, dumpability and the parent-death
    /// signal; then `no_new_privs` and Landlock; the filter last, as it denies
    /// all of the above.
    ///
    /// # Errors
    /// Returns the error of the step that failed. Before the first change these
    /// are: more than one thread, or an identity that is impossible or not
    /// allowed. After that, the process is partly confined and must exit.
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

    /// Drops groups, IDs and capabilities.
    fn drop_privileges(&self, layers: Layers, report: &mut Report) -> Result<(), SandboxError> {
        let bounding = match layers.capabilities {
            true => identity::shrink_bounding_set(self.profile)?,
            false => Outcome::SwitchedOff,
        };
        let ids = match (layers.identity, self.profile.is_confined()) {
            (false, _) => Outcome::SwitchedOff,
            // A manager needs its groups: `kvm`, and that of the socket.
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

    /// Sets what every change of IDs resets: dumpability and the parent-death
    /// signal.
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
            // Set it explicitly: a change of IDs may have cleared it.
            (_, true) => (DumpableBehavior::Dumpable, Outcome::Debuggable),
            (true, false) => (DumpableBehavior::NotDumpable, Outcome::Applied),
            (false, false) => return Ok(Outcome::SwitchedOff),
        };
        set_dumpable_behavior(behavior).map_err(failed("prctl(PR_SET_DUMPABLE)"))?;
        Ok(outcome)
    }

    /// Denies access to the file system, the network and the kernel's other
    /// interfaces.
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
            (true, true) if self.profile == Profile::Helper => domain::enter_for_helper()?,
            (true, true) => domain::enter()?,
        };
        report.add(Layer::Landlock, landlock);
        let filter = match layers.seccomp {
            true => seccomp::install(self.profile, self.disks, self.mode)?,
            false => Outcome::SwitchedOff,
        };
        report.add(Layer::Seccomp, filter);
        Ok(())
    }
}

/// Fails if a layer would only apply to one of several threads.
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

/// Requests SIGKILL for the parent's death, then checks that the parent had not
/// died before: otherwise the request would refer to the process that adopted
/// this one.
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
    /// Returns whether forbidden system calls really fail.
    pub fn refuses(self) -> bool {
        matches!(self, Self::Kill | Self::Errno)
    }
}
