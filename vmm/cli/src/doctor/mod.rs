//! What this host can do, found out by trying.
//!
//! Whether an unmodified Linux runs is not a matter of capabilities: some
//! paravirtual back-ends answer every ioctl and then cannot emulate an
//! instruction that Linux needs. So a probe executes those instructions in a
//! guest of its own.

pub mod kind;
pub mod offers;

use std::fmt;

use mkpool::AddrRange;
use serde::Serialize;
use utoipa::ToSchema;

use crate::builder::{GuestConfig, Images, InstanceConfig};
use crate::doctor::offers::Offers;
use crate::error_chain::chain;
use crate::event_loop::{Supervisor, VmmEvent};
use crate::fleet::Fleet;
use crate::host_pool::HostPool;
use crate::instance::state::EndReason;
use crate::kvm::Host;
use crate::layout::DYNAMIC_POOL_MIN;
use crate::loader::KernelImage;
use crate::machine::MIN_POOL;
use crate::reservation::ReservationConfig;

/// How long the test guest may take before it counts as stuck.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Examines the host; never fails, since failing is a finding.
pub fn examine() -> Findings {
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => {
            let why = chain(&error);
            return Findings {
                kvm: Answer::no(why),
                kvm_kind: kind::look(),
                probe: Answer::no("no KVM"),
                linux: Answer::no("no KVM"),
                address_bits: None,
                memory_slots: None,
                max_vcpus: None,
                offers: offers::look(),
            };
        }
    };
    let address_bits = Some(host.address_bits());
    let memory_slots = Some(host.memory_slots());
    let max_vcpus = Some(host.kvm().get_max_vcpus());
    let probe = answer(host, "", |_| "the probe ended badly".to_owned());
    let linux = if probe.ok {
        match Host::open() {
            Ok(host) => answer(host, "caps", |reason| match reason {
                EndReason::KvmError => {
                    "this KVM cannot emulate an instruction that Linux executes \
                     (int3, cmpxchg16b, xsave or xrstor in supervisor mode)"
                        .to_owned()
                }
                other => format!("the test guest ended with {other}"),
            }),
            Err(error) => Answer::no(chain(&error)),
        }
    } else {
        Answer::no("not even the probe runs")
    };
    Findings {
        kvm: Answer::yes(),
        kvm_kind: kind::look(),
        probe,
        linux,
        address_bits,
        memory_slots,
        max_vcpus,
        offers: offers::look(),
    }
}

/// Runs one probe with `cmdline`; yes when it ends by a clean reset.
fn answer(host: Host, cmdline: &str, explain: impl Fn(EndReason) -> String) -> Answer {
    match run_probe(host, cmdline) {
        Ok(Some(EndReason::Reboot)) => Answer::yes(),
        Ok(Some(reason)) => Answer::no(explain(reason)),
        Ok(None) => Answer::no("the test guest did not end in time"),
        Err(error) => Answer::no(chain(&*error)),
    }
}

fn run_probe(
    host: Host,
    cmdline: &str,
) -> Result<Option<EndReason>, Box<dyn std::error::Error + Send + Sync>> {
    let pool = HostPool::new(
        AddrRange::with_size(DYNAMIC_POOL_MIN, MIN_POOL)?,
        ReservationConfig::default(),
        &|_| (),
    )?;
    let mut images = Images::new(KernelImage::probe()?.into(), cmdline);
    images.is_probe = true;
    let config = GuestConfig {
        instance: InstanceConfig::new("doctor".parse()?, MIN_POOL.try_into()?),
        images,
    };
    let (mut fleet, receiver) = Fleet::build(host, pool, &[config])?;
    // Nobody reads what the probe prints.
    fleet.console().close();
    fleet.start()?;
    let end = std::time::Instant::now() + PATIENCE;
    while !fleet.is_done() {
        match receiver.recv_until(end) {
            Some(VmmEvent::Violation { .. }) => {}
            Some(event) => fleet.on_event(event),
            None => return Ok(None),
        }
    }
    Ok(fleet.outcomes().first().map(|outcome| outcome.reason))
}
