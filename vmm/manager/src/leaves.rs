//! Guests' own cgroups: a leaf for each, from its first worker to its
//! deletion.
//!
//! Making and removing one is quick by itself, but waits while anybody on the
//! host moves a process between cgroups, so it happens on a thread that may.

use std::sync::Arc;

use mkvmm_base::chain;
use mkvmm_keeper::cgroup::{Base, CgroupError, Cgroups, Leaf, ResourceLimits, remove_stale};

/// Where guests have cgroups.
#[derive(Debug, Clone, Default)]
pub enum Leaves {
    /// Guests have no cgroups of their own.
    #[default]
    Off,
    /// Below this one, for accounting, where that costs nothing and may be.
    Offered(Cgroups),
    /// Below this one; a guest that can have none there does not run.
    Required(Cgroups),
}

impl Leaves {
    /// Returns leaves below the cgroup of this process, if any can be made.
    /// Removes those that others have left behind.
    pub fn offered() -> Self {
        let found = Cgroups::find(&Base::Own).and_then(|base| {
            remove_stale(&base);
            Leaf::account(&base, "probe")?.remove()?;
            Ok(base)
        });
        match found {
            Ok(base) => Self::Offered(base),
            Err(error) => {
                log::debug!("guests have no cgroups: {}", chain(&error));
                Self::Off
            }
        }
    }

    /// Returns leaves below `base`. Removes those that others have left behind.
    ///
    /// # Errors
    /// [`CgroupError`] where none can be made.
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

    /// Makes a leaf, where guests have some: below `base` where its user named
    /// one, and with `limits`. To be called where waiting does no harm.
    pub(crate) fn make(
        &self,
        name: &str,
        base: Option<&Cgroups>,
        limits: &ResourceLimits,
    ) -> Result<Option<Leaf>, CgroupError> {
        let is_limited = *limits != ResourceLimits::default();
        let leaf = match (base, self) {
            (Some(base), _) => Leaf::create(base, name)?,
            (None, Self::Off) if is_limited => Leaf::create(&Cgroups::find(&Base::Own)?, name)?,
            (None, Self::Off) => return Ok(None),
            (None, Self::Offered(base)) if is_limited => Leaf::create(base, name)?,
            (None, Self::Required(base)) => Leaf::create(base, name)?,
            (None, Self::Offered(base)) => {
                let leaf = Leaf::account(base, name);
                return Ok(leaf
                    .inspect_err(|error| log::debug!("{}", chain(error)))
                    .ok());
            }
        };
        leaf.limit(limits)?;
        Ok(Some(leaf))
    }

    pub(crate) fn is_required(&self) -> bool {
        matches!(self, Self::Required(_))
    }
}

/// Removes a leaf whose processes are gone.
pub(crate) async fn remove(leaf: Arc<Leaf>) {
    // A leaf that stays is said so by the next start.
    let _ = tokio::task::spawn_blocking(move || drop(leaf)).await;
}
