//! Guests' cgroups: one leaf for each, from its first worker to its deletion.
//!
//! Creating and removing one is quick by itself, but waits while anybody on the
//! host moves a process between cgroups, so it happens on a thread that may
//! block.

use std::sync::{Arc, OnceLock};

use mkvmm_base::{InstanceId, InstanceName, chain};
use mkvmm_keeper::cgroup::{Base, CgroupError, Cgroups, Leaf, ResourceLimits, remove_stale};

/// The cgroups that guests get.
#[derive(Debug, Clone, Default)]
pub enum Leaves {
    /// Guests have no cgroups of their own.
    #[default]
    Off,
    /// Guests have cgroups below that of this process for accounting, if that
    /// is free of cost and permitted. It is searched for when the first one is
    /// created.
    Offered(Arc<OnceLock<Option<Cgroups>>>),
    /// Guests have cgroups below this one; a guest without one does not run.
    Required(Cgroups),
}

impl Leaves {
    /// Returns leaves below the cgroup of this process, if any can be created.
    pub fn offered() -> Self {
        Self::Offered(Arc::default())
    }

    /// Returns leaves below `base`. Removes stale leaves.
    ///
    /// # Errors
    /// Returns a [`CgroupError`] if none can be created.
    pub fn required(base: &Base) -> Result<Self, CgroupError> {
        let base = Cgroups::find(base)?;
        remove_stale(&base);
        let leaf = Leaf::create(&base, "probe")?;
        for missed in leaf.missed() {
            log::warn!("guests are not accounted for there: {}", chain(missed));
        }
        leaf.remove()?;
        Ok(Self::Required(base))
    }

    /// Creates a leaf, if guests get any: below `base` if its user named one, and
    /// with `limits`. Must be called where blocking is allowed.
    pub(crate) fn make(
        &self,
        name: &str,
        base: Option<&Cgroups>,
        limits: &ResourceLimits,
    ) -> Result<Option<Leaf>, CgroupError> {
        let is_limited = *limits != ResourceLimits::default();
        let leaf = match (base, self) {
            (Some(base), _) => Leaf::create(base, name)?,
            (None, Self::Off | Self::Offered(_)) if is_limited => {
                Leaf::create(&Cgroups::find(&Base::Own)?, name)?
            }
            (None, Self::Off) => return Ok(None),
            (None, Self::Required(base)) => Leaf::create(base, name)?,
            (None, Self::Offered(base)) => {
                let base = base.get_or_init(find_own);
                let leaf = base.as_ref().map(|base| Leaf::account(base, name));
                return Ok(leaf.and_then(logged));
            }
        };
        leaf.limit(limits)?;
        Ok(Some(leaf))
    }

    pub(crate) fn is_required(&self) -> bool {
        matches!(self, Self::Required(_))
    }
}

/// Finds the cgroup of this process, and removes stale leaves there.
fn find_own() -> Option<Cgroups> {
    let base = logged(Cgroups::find(&Base::Own))?;
    remove_stale(&base);
    Some(base)
}

fn logged<T>(result: Result<T, CgroupError>) -> Option<T> {
    let log = |error: &CgroupError| log::debug!("guests have no cgroups: {}", chain(error));
    result.inspect_err(log).ok()
}

/// Returns the name of an instance's leaf, which never is the kernel's name of a
/// file, and is never reused.
pub(crate) fn leaf_name(id: InstanceId, name: &InstanceName) -> String {
    format!("{id}-{name}")
}

/// Removes a leaf whose processes are gone.
pub(crate) async fn remove(leaf: Arc<Leaf>) {
    // A leaf that cannot be removed is reported by the next start.
    let _ = tokio::task::spawn_blocking(move || drop(leaf)).await;
}
