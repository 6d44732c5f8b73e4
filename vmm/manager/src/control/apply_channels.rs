//! The channels of a fleet: how they differ from those that are there.

use std::collections::BTreeSet;

use mkvmm_api::Size;
use mkvmm_api::apply::{Difference, FleetAction, FleetChange};
use mkvmm_api::channel::MemberSpec;
use mkvmm_base::InstanceName;
use mkvmm_memory::host_pool::HostPoolError;

use crate::channels::{Channel, ChannelConfig, ChannelError};
use crate::manager::Manager;
use crate::registry::Registry;

/// What is to be done about channels.
#[derive(Debug, Default)]
pub(super) struct ChannelSteps {
    /// The channels to create, in their order, and whether one of the same name goes.
    pub new: Vec<(ChannelConfig, bool)>,
    /// The names of the channels to delete, those to be replaced among them.
    pub gone: Vec<InstanceName>,
}

impl ChannelSteps {
    /// Returns the steps that make `changes`, of which those of `wanted` are the
    /// first.
    pub fn of(changes: &[FleetChange], wanted: &[ChannelConfig]) -> Self {
        let mut steps = Self::default();
        for (config, change) in wanted.iter().zip(changes) {
            match change.action {
                FleetAction::Create => steps.new.push((config.clone(), false)),
                FleetAction::Replace => steps.new.push((config.clone(), true)),
                _ => {}
            }
        }
        let goes = |change: &&FleetChange| {
            matches!(change.action, FleetAction::Replace | FleetAction::Delete)
        };
        let names = changes.iter().filter(goes);
        steps.gone = names.filter_map(|one| one.name.parse().ok()).collect();
        steps
    }

    /// Checks everything that does not depend on the pool. Returns whether what goes
    /// must go first, since a member would have too many channels meanwhile.
    ///
    /// # Errors
    /// Returns a [`ChannelError`].
    pub fn check(&self, manager: &Manager) -> Result<bool, ChannelError> {
        let registry = manager.registry();
        let (mut all, mut early) = (Vec::new(), Vec::new());
        let mut is_gone_first = false;
        for (config, replaces) in &self.new {
            manager.check_channel(config)?;
            registry.check_members(config, &all, &self.gone)?;
            all.push(config.clone());
            if !replaces {
                is_gone_first |= registry.check_members(config, &early, &[]).is_err();
                early.push(config.clone());
            }
        }
        Ok(is_gone_first)
    }
}

/// Returns what is to happen to each channel: those of the fleet first, in its order,
/// then all others.
///
/// # Errors
/// Returns a [`ChannelError`] for a channel that is to change and cannot now.
pub(super) fn compare(
    registry: &Registry,
    wanted: &[ChannelConfig],
    prune: bool,
) -> Result<Vec<FleetChange>, ChannelError> {
    let (mut changes, mut names) = (Vec::new(), BTreeSet::new());
    for config in wanted {
        if !names.insert(&config.name) {
            let name = config.name.clone();
            return Err(HostPoolError::ChannelExists { name }.into());
        }
        changes.push(match registry.channel(&config.name) {
            Ok(channel) if channel.is_ending() => {
                // It is going away, and nothing else can be done with it.
                let name = config.name.clone();
                return Err(ChannelError::Ending { name });
            }
            Ok(channel) => {
                let differences = differences(channel, config, registry.pool().order());
                let action = match differences.is_empty() {
                    true => FleetAction::Keep,
                    false => FleetAction::Replace,
                };
                change(channel, action, differences)
            }
            Err(_unknown) => FleetChange {
                name: config.name.to_string(),
                action: FleetAction::Create,
                differences: Vec::new(),
                starts: false,
                ends: false,
            },
        });
    }
    let others = registry.channels();
    for channel in others.filter(|channel| !names.contains(channel.name())) {
        let action = match prune {
            true => FleetAction::Delete,
            false => FleetAction::Leave,
        };
        changes.push(change(channel, action, Vec::new()));
    }
    Ok(changes)
}

/// Describes what happens to a channel that is there.
fn change(channel: &Channel, action: FleetAction, differences: Vec<Difference>) -> FleetChange {
    let goes = matches!(action, FleetAction::Replace | FleetAction::Delete);
    let is_used = channel.members().iter().any(|member| member.run.is_some());
    FleetChange {
        name: channel.name().to_string(),
        action,
        differences,
        starts: false,
        ends: goes && is_used,
    }
}

/// Returns the keys in which a channel and its specification differ, with both
/// values. Sizes are rounded up to granules of `1 << order` bytes, as memory is.
fn differences(channel: &Channel, wanted: &ChannelConfig, order: u32) -> Vec<Difference> {
    let present = channel.config();
    let size = |config: &ChannelConfig| {
        let granule = 1_u64.checked_shl(order).unwrap_or(1);
        let bytes = config.size.checked_next_multiple_of(granule);
        let bytes = bytes.unwrap_or(config.size);
        Size::try_from(bytes).map_or_else(|_| bytes.to_string(), Size::exact_text)
    };
    let between = |config: &ChannelConfig| {
        let members = config.members.iter().map(|(name, read_only)| MemberSpec {
            name: name.clone(),
            read_only: *read_only,
        });
        let members: Vec<String> = members.map(|member| member.to_string()).collect();
        members.join(", ")
    };
    let doorbells = |config: &ChannelConfig| config.doorbells.to_string();
    let keys = [
        ("between", between(&present), between(wanted)),
        ("doorbells", doorbells(&present), doorbells(wanted)),
        ("size", size(&present), size(wanted)),
    ];
    let differing = keys.into_iter().filter(|(_, from, to)| from != to);
    let difference = |(key, from, to): (&str, String, String)| Difference {
        key: key.to_owned(),
        from: Some(from),
        to: Some(to),
    };
    differing.map(difference).collect()
}
