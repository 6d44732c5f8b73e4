//! The identity of a process: IDs and capabilities.

use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getgroups, getuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use rustix::thread::{Gid, Uid};

use crate::error::{SandboxError, failed};
use crate::profile::{Identity, Profile};
use crate::report::Outcome;

/// Checks, before anything changes, that the identity is possible and allowed.
///
/// # Errors
/// Returns [`SandboxError::RootWorker`] if a confined process would run as
/// root, or [`SandboxError::NotRoot`] if this process cannot change to the
/// requested IDs.
pub(crate) fn check(profile: Profile, wanted: Option<Identity>) -> Result<(), SandboxError> {
    let uid = geteuid().as_raw();
    let after = wanted.map_or(uid, |identity| identity.uid);
    if profile.is_confined() && (after == 0 || (wanted.is_none() && getuid().is_root())) {
        return Err(SandboxError::RootWorker { profile });
    }
    if uid != 0 && after != uid {
        let from = uid;
        return Err(SandboxError::NotRoot { from, to: after });
    }
    Ok(())
}

/// Drops supplementary groups and changes to `wanted`, the groups first:
/// without root's user ID they could no longer be changed.
///
/// # Errors
/// Returns the system call that failed, or [`SandboxError::IdsKept`].
pub(crate) fn assume(wanted: Option<Identity>) -> Result<Outcome, SandboxError> {
    let groups = drop_groups()?;
    let Some(Identity { uid, gid }) = wanted else {
        return Ok(groups);
    };
    let (new_uid, new_gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_res_gid(new_gid, new_gid, new_gid).map_err(failed("setresgid"))?;
    set_thread_res_uid(new_uid, new_uid, new_uid).map_err(failed("setresuid"))?;
    if geteuid() != new_uid || getuid() != new_uid || getegid() != new_gid {
        return Err(SandboxError::IdsKept {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        });
    }
    Ok(groups)
}

/// Drops supplementary groups if that is permitted, and reports if it is not.
fn drop_groups() -> Result<Outcome, SandboxError> {
    match set_thread_groups(&[]) {
        Ok(()) => Ok(Outcome::Applied),
        Err(Errno::PERM) => {
            let count = getgroups().map_err(failed("getgroups"))?.len();
            Ok(match count {
                0 => Outcome::Applied,
                count => Outcome::GroupsKept { count },
            })
        }
        Err(source) => Err(failed("setgroups")(source)),
    }
}

/// The capabilities that the manager of a system service works with: it opens
/// images of any owner, gives its socket to a group, makes processes of another
/// user, moves them to cgroups and ends them, and locks memory.
const MANAGER: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH);

/// Returns the capabilities that a process with this profile may keep.
fn kept(profile: Profile) -> CapabilitySet {
    match profile {
        Profile::Manager => MANAGER,
        Profile::Worker | Profile::Unpacker | Profile::Cleaner | Profile::Helper => {
            CapabilitySet::empty()
        }
    }
}

/// Removes capabilities from the bounding set. Must be called before the change
/// of IDs, which removes CAP_SETPCAP.
///
/// # Errors
/// Returns the system call that failed. A missing CAP_SETPCAP is not an error.
pub(crate) fn shrink_bounding_set(profile: Profile) -> Result<Outcome, SandboxError> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept(profile).contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(Errno::PERM) => return Ok(Outcome::BoundingSetKept),
            // The first number that the kernel does not know ends the set.
            Err(Errno::INVAL) => break,
            Err(source) => return Err(failed("prctl(PR_CAPBSET_DROP)")(source)),
        }
    }
    Ok(Outcome::Applied)
}

/// Clears the ambient and inheritable sets and reduces the permitted and
/// effective sets to what `profile` keeps. Must be called after the change of
/// IDs.
///
/// # Errors
/// Returns the system call that failed.
pub(crate) fn lower_capabilities(profile: Profile) -> Result<(), SandboxError> {
    clear_ambient_capability_set().map_err(failed("prctl(PR_CAP_AMBIENT_CLEAR_ALL)"))?;
    let now = rustix::thread::capabilities(None).map_err(failed("capget"))?;
    let permitted = now.permitted.intersection(kept(profile));
    let sets = CapabilitySets {
        effective: now.effective.intersection(permitted),
        permitted,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(failed("capset"))
}
